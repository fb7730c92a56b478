"""The sequences that take one token each step, kept so that a steady decode costs the host nothing per sequence.

All members advance together, so what will happen to each is known in steps from now: when its last block is full, when
it reaches its output limit. Both stand in a calendar by step; a step looks at its own page only.
"""

from __future__ import annotations

import heapq
import sys
from collections import defaultdict
from collections.abc import Mapping

from penstock.core.plan import NO_DECODE, DecodeGroup
from penstock.core.sequence import Sequence, StepCounter

Page = list[tuple[int, int]]  # (row, number of the join): what a member noted before it left is stale


class Decoding:
    """Members of the decode group, in the order in which they joined."""

    def __init__(self) -> None:
        self._counter = StepCounter()
        self._members: dict[int, Sequence] = {}
        self._join_of: dict[int, int] = {}
        self._n_joins = 0
        self._full: defaultdict[int, Page] = defaultdict(list)
        self._full_steps: list[int] = []  # the keys of `_full`, a heap
        self._limit: defaultdict[int, Page] = defaultdict(list)
        self._limit_steps: list[int] = []  # the keys of `_limit`, a heap
        self._version = 0
        self._group = NO_DECODE
        self._epochs: tuple[tuple[Sequence, int], ...] = ()

    def __len__(self) -> int:
        return len(self._members)

    def join(self, seq: Sequence, capacity_tokens: int | None) -> None:
        """From now on the sequence takes a token each step, until its output limit."""
        assert seq.row is not None
        seq.join(self._counter)
        self._members[seq.row] = seq
        self._join_of[seq.row] = self._n_joins
        self._n_joins += 1
        self._version += 1
        self._note_capacity(seq, capacity_tokens)
        left = seq.output_limit_tokens - seq.planned_outputs
        assert left > 0, f"{seq.id} has no output left to decode"
        at = self._counter.steps + left
        if at not in self._limit:
            heapq.heappush(self._limit_steps, at)
        self._limit[at].append((seq.row, self._join_of[seq.row]))

    def leave(self, seq: Sequence) -> None:
        assert seq.row is not None
        del self._members[seq.row]
        del self._join_of[seq.row]
        seq.leave()
        self._version += 1

    def take_full(self) -> list[Sequence]:
        """Those whose blocks are full: each needs room for one more token before the next step."""
        while self._full_steps and self._full_steps[0] <= self._counter.steps:
            heapq.heappop(self._full_steps)
        return self._live(self._full.pop(self._counter.steps, []))

    def note_grown(self, seq: Sequence, capacity_tokens: int | None) -> None:
        """A member got room for tokens [0, capacity)."""
        self._note_capacity(seq, capacity_tokens)

    def advance(self, steps: int = 1) -> None:
        """Everyone takes so many steps, at most `steps_to_limit`; those who reached their output limit leave."""
        self._counter.steps += steps
        if self._limit_steps and self._limit_steps[0] == self._counter.steps:
            heapq.heappop(self._limit_steps)
            for seq in self._live(self._limit.pop(self._counter.steps)):
                self.leave(seq)

    @property
    def steps_to_full(self) -> int:
        """Steps after which `take_full`, just asked, may have somebody again, and before which it has nobody."""
        return self._full_steps[0] - self._counter.steps if self._full_steps else sys.maxsize

    @property
    def steps_to_limit(self) -> int:
        """Steps after which a member may have reached its output limit; no member does before that."""
        return self._limit_steps[0] - self._counter.steps

    @property
    def group(self) -> DecodeGroup:
        """The members as a plan names them; the same object while nobody joins or leaves."""
        if self._group.version != self._version:
            self._group = DecodeGroup(tuple(self._members), self._version)
            self._epochs = tuple((seq, seq.epoch) for seq in self._members.values())
        return self._group

    @property
    def members(self) -> Mapping[int, Sequence]:
        """By row, in the order of `group.rows`."""
        return self._members

    @property
    def epochs(self) -> tuple[tuple[Sequence, int], ...]:
        """Each member with its epoch, in the order of `group.rows`."""
        assert self._group.version == self._version, "ask for the group first"
        return self._epochs

    def _note_capacity(self, seq: Sequence, capacity_tokens: int | None) -> None:
        if capacity_tokens is not None and seq.row is not None:
            at = self._counter.steps + capacity_tokens - seq.planned_tokens
            if at not in self._full:
                heapq.heappush(self._full_steps, at)
            self._full[at].append((seq.row, self._join_of[seq.row]))

    def _live(self, page: Page) -> list[Sequence]:
        return [self._members[row] for row, join in page if self._join_of.get(row) == join]
