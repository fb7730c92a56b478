"""Steady decoding in one go: steps that are all alike are taken together, and come out as if taken one by one.

Theory. While nobody comes, goes, rests or has a prompt to compute, a step is the decode group of the step before, and
what it does to the books is known: every member is a token further, and whose last block is full gets another. If the
executor knows what such steps bring (`Foreseeing`), policies need not be asked before each of them, nor results
be awaited one by one. What is left of a step is its page in the calendar of `decoding.py`, in the same order and at the
same time as ever, so that memory ends up the same to the block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from penstock.cache.memory import BLOCKS_AHEAD, Memory
from penstock.core.executor import Foresight
from penstock.core.plan import Leap, RowBlocks
from penstock.core.sequence import SeqState, Sequence
from penstock.core.view import Steady
from penstock.engine.draft import Planned
from penstock.engine.messages import Update
from penstock.engine.queue import WaitQueue
from penstock.engine.residents import Residents
from penstock.policy.presets import Policies, observers_of


class Leaps:
    """Tells how many steps will be alike, and takes them."""

    def __init__(self, residents: Residents, queue: WaitQueue, memory: Memory, policies: Policies) -> None:
        self._residents = residents
        self._queue = queue
        self._memory = memory
        are_steady = isinstance(policies.batch, Steady) and isinstance(policies.preempt, Steady)
        self._are_allowed = are_steady and not observers_of(policies, "on_step")

    def steps(self, out: Iterable[Planned]) -> int:
        """How many of the next plans are those that are `out` once more, unless somebody comes or is cancelled."""
        residents, decoding = self._residents, self._residents.decoding
        if not self._are_allowed or residents.prefilling or not len(decoding):
            return 0
        if len(self._queue) and residents.has_free_row:
            return 0  # admission is asked before every step
        if residents.is_changing or not self._memory.is_still:
            return 0
        group = decoding.group
        if any(planned.plan.decode is not group or planned.chunk_owners for planned in out):
            return 0
        most = decoding.steps_to_limit  # somebody leaves when the last of these is planned
        for layers in self._memory.groups:  # nobody has to yield while each may take a block in as many steps
            blocks_each = layers.pool.available // len(decoding) - (BLOCKS_AHEAD - 1)
            most = min(most, blocks_each * layers.spec.block_tokens)
        return most

    def is_end_among(self, tokens: npt.NDArray[np.int32]) -> bool:
        """Whether one of these samples of the decode group ends its sequence."""
        members = self._residents.decoding.members.values()
        return any(token in seq.stop_ids for token, seq in zip(tokens.tolist(), members, strict=True))

    def take(self, ahead: Foresight, steps: int, now_s: float, first_id: int) -> tuple[Leap, list[Update]]:
        """Take `steps` steps. Returns what they were, and what they brought."""
        decoding = self._residents.decoding
        group, members = decoding.group, tuple(decoding.members.items())  # some may leave with the last step
        tokens = dict(zip(group.rows, ahead.tokens.tolist(), strict=True))
        ends_s: list[float] = ahead.ends_s[:steps].tolist()
        began_tokens = {row: len(seq.tokens) for row, seq in members}
        grows: list[tuple[int, RowBlocks]] = []
        step = 0
        while step < steps:
            if full := decoding.take_full():
                self._memory.tick(ends_s[step - 1] if step else now_s)
                for seq in full:
                    assert seq.row is not None
                    _learn(seq, tokens[seq.row], began_tokens[seq.row] + step)
                    grows.extend((step, grow) for grow in self._grow(seq))
            alike = min(steps - step, decoding.steps_to_full)
            decoding.advance(alike)
            step += alike
        updates = []
        for row, seq in members:
            _learn(seq, tokens[row], began_tokens[row] + steps)
            seq.last_token_s = ends_s[-1]
            updates.append(Update(seq.request.id, seq.index, [tokens[row]] * steps))
        ends = self._residents.draft.take_ends()
        return Leap(decode=group, first_id=first_id, steps=steps, ends=ends, grows=tuple(grows)), updates

    def _grow(self, seq: Sequence) -> tuple[RowBlocks, ...]:
        """Room for one more token."""
        self._memory.trim(seq)
        change = self._memory.try_grow(seq, self._memory.decode_tokens(seq))
        assert change is not None, "`steps` said that there is room"
        assert not change.copies, "a decoding sequence writes into blocks of its own"
        self._residents.decoding.note_grown(seq, self._memory.capacity_tokens(seq))
        return change.grows


def _learn(seq: Sequence, token: int, to_tokens: int) -> None:
    """The same token again and again, until the sequence has so many."""
    assert seq.state is SeqState.RUNNING
    seq.tokens.extend(array("i", (token,)) * (to_tokens - len(seq.tokens)))
