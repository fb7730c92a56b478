"""The load of each plan, followed plan by plan as an executor does; a steady decode costs nothing per sequence.

Theory. A row's keys are its tokens so far. Members of the decode group grow by one a step, so a member stands as its
keys less the steps so far, and the sum over all is kept, not counted. A layer with a window reads at most window and
sinks: its sum grows by those members alone that have not reached that, and a calendar says when each does.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from penstock.core.executor import ModelFacts, StateSpec
from penstock.core.plan import NO_DECODE, Chunk, DecodeGroup, Plan
from penstock.cost.load import Floats, StepLoad, keys_seen


class PlanLoads:
    """Follows the plans of one executor, in their order. joined: rows that the last plan added to the decode group."""

    def __init__(self, facts: ModelFacts) -> None:
        self.joined: Sequence[int] = ()
        self.steps = 0  # of the decode group
        self._n_layers = facts.n_layers
        self._sums = _sums_of(facts.states)
        self._keys: dict[int, int] = {}  # by row; of members of the group: less `steps`
        self._members: set[int] = set()
        self.group = NO_DECODE  # of the last plan that decoded

    def keys(self, row: int) -> int:
        """Tokens of a row whose state is written, behind the last plan."""
        return self._keys[row] + (self.steps if row in self._members else 0)

    def is_decoding(self, row: int) -> bool:
        return row in self._members

    def follow(self, plan: Plan) -> StepLoad:
        """The load of the next plan; the rows go on."""
        for row in plan.ends:
            self._leave(row)
            del self._keys[row]
        for start in plan.starts:
            assert start.row not in self._keys, f"row {start.row} is taken: its sequence has not ended"
            self._keys[start.row] = start.computed_tokens
        for chunk in plan.chunks:
            self._leave(chunk.row)
        self._decode(plan.decode)
        sums = self._sums if plan.decode.rows else ()
        load = self._load(plan, sum(share * one.keys(self.steps) for share, one in sums))
        for chunk in plan.chunks:
            if self._stop_layer(chunk) == self._n_layers:
                self._keys[chunk.row] = chunk.stop
        return load

    @property
    def steps_alike(self) -> int:
        """Steps of the present group in which the same members go on growing, at the least."""
        return min(one.steps_alike(self.steps) for _, one in self._sums)

    def keys_ahead(self, steps: int) -> Floats:
        """`StepLoad.decode_keys` of each of the next steps of the group, at most `steps_alike`."""
        behind = self.steps + np.arange(1, steps + 1)
        return np.asarray(sum(share * one.keys_ahead(behind) for share, one in self._sums), np.float64)

    def leap(self, steps: int, ends: Sequence[int] = ()) -> None:
        """So many steps of the group, at most `steps_alike`, went by, the first of which ended these rows of others."""
        self.joined = ()
        for row in ends:
            del self._keys[row]
        self.steps += steps

    def of(self, plan: Plan) -> StepLoad:
        """What a plan that somebody thinks of would ask if it came next; nothing goes on."""
        keys = [self.keys(row) + 1 for row in plan.decode.rows]
        return self._load(plan, sum(share * sum(one.of(n) for n in keys) for share, one in self._sums))

    def _load(self, plan: Plan, decode_keys: float) -> StepLoad:
        n_rows = plan.decode.tokens
        if not plan.chunks:
            return StepLoad(n_rows, decode_keys, samples=n_rows, starts=len(plan.starts))
        tokens, keys, pairs, layers = 0, 0.0, 0.0, 0
        for chunk in plan.chunks:
            n = chunk.tokens
            tokens += n
            layers += (self._stop_layer(chunk) - chunk.first_layer) * n
            for share, one in self._sums:
                keys += share * (chunk.stop if one.most is None else min(chunk.stop, n + one.most - 1))
                pairs += share * keys_seen(chunk.start, chunk.stop, one.most)
        return StepLoad(
            decode_rows=n_rows,
            decode_keys=decode_keys,
            chunk_tokens=tokens,
            chunk_keys=keys,
            chunk_pairs=pairs,
            samples=n_rows + len(plan.sampling_chunks),
            layer_frac=layers / (self._n_layers * tokens),
            starts=len(plan.starts),
        )

    def _stop_layer(self, chunk: Chunk) -> int:
        return self._n_layers if chunk.stop_layer is None else chunk.stop_layer

    def _decode(self, group: DecodeGroup) -> None:
        """Everyone in the group takes a token."""
        self.joined = ()
        if not group.rows:
            return
        if group is not self.group:
            members = set(group.rows)
            for row in self._members - members:
                self._leave(row)
            self.joined = sorted(members - self._members)  # a set has no order of its own
            for row in self.joined:
                self._join(row)
            self.group = group
        self.steps += 1

    def _join(self, row: int) -> None:
        for _, one in self._sums:
            one.join(row, self._keys[row], self.steps)
        self._keys[row] -= self.steps
        self._members.add(row)

    def _leave(self, row: int) -> None:
        if row in self._members:
            self._members.remove(row)
            self._keys[row] += self.steps
            for _, one in self._sums:
                one.leave(row, self._keys[row], self.steps)


class _KeySum:
    """Keys that the decode group reads in the layers of one state group. most: of one member; None: all."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._grown = 0  # keys of members that still grow, less the steps so far of each
        self._n_growing = 0
        self._n_whole = 0  # members that read `most`
        self._fills: list[
            tuple[int, int, int]
        ] = []  # (step that it reads `most` from, number of the join, row), a heap
        self._joins: dict[int, int] = {}  # of growing members: row -> number of the join
        self._n_joins = 0

    def keys(self, steps: int) -> int:
        while self._fills and self._fills[0][0] <= steps:
            at, number, row = heapq.heappop(self._fills)
            if self._joins.get(row) == number:
                self._stop_growing(row, (self.most or 0) - at)
                self._n_whole += 1
        return self._grown + self._n_growing * steps + self._n_whole * (self.most or 0)

    def steps_alike(self, steps: int) -> int:
        return self._fills[0][0] - steps - 1 if self._fills else sys.maxsize

    def keys_ahead(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self._grown + self._n_growing * steps + self._n_whole * (self.most or 0)

    def of(self, keys: int) -> int:
        """What one sequence with so many keys reads."""
        return keys if self.most is None else min(keys, self.most)

    def join(self, row: int, keys: int, steps: int) -> None:
        if self.most is not None and keys >= self.most:
            self._n_whole += 1
            return
        self._grown += keys - steps
        self._n_growing += 1
        self._n_joins += 1
        self._joins[row] = self._n_joins
        if self.most is not None:
            heapq.heappush(self._fills, (steps + self.most - keys, self._n_joins, row))

    def leave(self, row: int, keys: int, steps: int) -> None:
        if row in self._joins:
            self._stop_growing(row, keys - steps)
        else:
            self._n_whole -= 1

    def _stop_growing(self, row: int, grown: int) -> None:
        self._grown -= grown
        self._n_growing -= 1
        del self._joins[row]


def _sums_of(states: Sequence[StateSpec]) -> tuple[tuple[float, _KeySum], ...]:
    """(share of the bytes of a token, its sum) of every state group."""
    all_bytes = sum(spec.block_bytes / spec.block_tokens for spec in states)
    return tuple(
        (
            spec.block_bytes / spec.block_tokens / all_bytes,
            _KeySum(None if spec.window_tokens is None else spec.window_tokens + spec.sink_tokens),
        )
        for spec in states
    )
