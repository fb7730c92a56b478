"""`SimExecutor`: the `Executor` that computes nothing. Steps take the time that a cost model predicts.

Theory. The device works on one step at a time, in order; a plan that is submitted while it is busy waits for it. So a
step starts at the later of its submission and the end of the step before, which is how look-ahead hides the host's
time. Waiting is moving the clock: a virtual one jumps, a real one is slept on. What is drawn is a stub that knows how
long each answer is: some token, and the stop token where an answer ends.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from penstock.core.clock import Clock, VirtualClock
from penstock.core.executor import ModelFacts, StepResult, Ticket
from penstock.core.plan import Chunk, DecodeGroup, Plan
from penstock.cost.load import StepLoad
from penstock.cost.model import CostModel

SOME_TOKEN, STOP_TOKEN = 1, 0
LengthOf = Callable[[int], int]  # seed of a sequence -> how many tokens its answer has


class WaitableClock(Clock, Protocol):
    """A clock on which one can wait."""

    def wait_until(self, at_s: float) -> None: ...


class JumpingClock(VirtualClock):
    """Virtual time: waiting is free."""

    def wait_until(self, at_s: float) -> None:
        self.advance(max(0.0, at_s - self.now_s()))


class SleepingClock:
    """Real time, for a simulated engine behind a real server."""

    def now_s(self) -> float:
        return time.monotonic()

    def wait_until(self, at_s: float) -> None:
        time.sleep(max(0.0, at_s - time.monotonic()))


@dataclass(slots=True)
class _Row:
    """keys: tokens whose state is written. end: tokens of the whole sequence, prompt and answer."""

    keys: int
    end: int


class SimExecutor:
    """Predicts instead of computing. length_of: the answer's length by the seed of its request; the policies never see
    it, for they see plans and tokens only. has_own_host_time: the host's work takes real time here, and none is added.
    host_bytes_per_s: of the link between the tiers, one way. some_token: what answers consist of.
    """

    def __init__(
        self,
        facts: ModelFacts,
        cost: CostModel,
        clock: WaitableClock,
        length_of: LengthOf,
        *,
        max_rows: int,
        host_bytes_per_s: float,
        has_own_host_time: bool = False,
        some_token: int = SOME_TOKEN,
    ) -> None:
        assert STOP_TOKEN in facts.stop_token_ids, "the stub ends answers with its stop token"
        self._facts = facts
        self._cost = cost
        self._clock = clock
        self._length_of = length_of
        self._max_rows = max_rows
        self._has_own_host_time = has_own_host_time
        self._rows: dict[int, _Row] = {}
        self._some_token = some_token
        self._decoding = _Decoding(self._rows, some_token)
        self._busy_until_s = 0.0
        self._host_bytes_per_s = host_bytes_per_s
        self._lane_busy_until_s = 0.0  # the link to host memory
        self._submitted: deque[tuple[float, int, StepResult]] = deque()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def max_rows(self) -> int:
        return self._max_rows

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        """Nothing is kept."""

    def submit(self, plan: Plan) -> Ticket:
        self._apply(plan)
        load, tokens = self._load(plan)
        if not self._has_own_host_time:
            self._clock.wait_until(self._clock.now_s() + self._cost.host_s(load))
        seconds = 0.0 if plan.is_empty else self._cost.step(load).seconds
        self._busy_until_s = max(self._busy_until_s, self._clock.now_s()) + seconds
        moved, done_s = self._move(plan), self._busy_until_s
        if moved:
            done_s = max(done_s, self._lane_busy_until_s)
        result = StepResult(tokens=tokens, device_s=seconds, moved=moved)
        self._submitted.append((done_s, plan.id, result))
        return Ticket(plan.id)

    def _move(self, plan: Plan) -> tuple[tuple[int, float], ...]:
        """Moves between the tiers run beside the steps, one plan's after the other's; they are told of with the result
        of their plan, which waits for them."""
        if not plan.moves:
            return ()
        seconds = sum(self._facts.states[move.group].block_bytes for move in plan.moves) / self._host_bytes_per_s
        self._lane_busy_until_s = max(self._lane_busy_until_s, self._clock.now_s()) + seconds
        return ((plan.id, seconds),)

    def collect(self, ticket: Ticket) -> StepResult:
        done_s, plan_id, result = self._submitted.popleft()
        assert plan_id == ticket.plan_id, f"{ticket} is not the oldest: collect {plan_id} first"
        self._clock.wait_until(done_s)
        return result

    def close(self) -> None:
        self._submitted.clear()

    def _apply(self, plan: Plan) -> None:
        if plan.starts or plan.ends:
            self._decoding.forget()
        for row in plan.ends:
            del self._rows[row]
        for start in plan.starts:
            assert start.row not in self._rows, f"row {start.row} is taken: its sequence has not ended"
            end = start.prompt_tokens + self._length_of(start.seed)
            self._rows[start.row] = _Row(start.computed_tokens, end)

    def _load(self, plan: Plan) -> tuple[StepLoad, npt.NDArray[np.int32]]:
        """The load of a plan, and what its samples are; the rows go on."""
        decode_keys, tokens = self._decoding.step(plan.decode)
        if not plan.chunks:
            return StepLoad(plan.decode.tokens, decode_keys, samples=plan.decode.tokens), tokens
        chunk_keys, pairs, layers, drawn = 0, 0.0, 0, []
        for index, chunk in enumerate(plan.chunks):
            stop_layer = self._facts.n_layers if chunk.stop_layer is None else chunk.stop_layer
            layers += (stop_layer - chunk.first_layer) * chunk.tokens
            chunk_keys += chunk.stop
            pairs += chunk.tokens * (chunk.start + (chunk.tokens + 1) / 2)
            if stop_layer == self._facts.n_layers:
                self._rows[chunk.row].keys = chunk.stop
            if index in plan.sampling_chunks:
                drawn.append(self._draw(chunk))
        chunk_tokens = sum(chunk.tokens for chunk in plan.chunks)
        load = StepLoad(
            decode_rows=plan.decode.tokens,
            decode_keys=decode_keys,
            chunk_tokens=chunk_tokens,
            chunk_keys=chunk_keys,
            chunk_pairs=pairs,
            samples=plan.decode.tokens + len(drawn),
            layer_frac=layers / (self._facts.n_layers * chunk_tokens),
        )
        return load, np.concatenate((tokens, np.array(drawn, np.int32))) if drawn else tokens

    def _draw(self, chunk: Chunk) -> int:
        return STOP_TOKEN if self._rows[chunk.row].keys + 1 >= self._rows[chunk.row].end else self._some_token


class _Decoding:
    """The decode group as numbers: a step of unchanged members costs nothing per member."""

    def __init__(self, rows: dict[int, _Row], some_token: int) -> None:
        self._rows = rows
        self._some_token = some_token
        self._group: DecodeGroup | None = None
        self._steps = 0  # that the present members took and their rows were not told of
        self._keys = 0
        self._ends: list[tuple[int, int]] = []  # (steps until its answer ends, place in the group), a heap
        self._ordinary = np.zeros(0, np.int32)

    def forget(self) -> None:
        """Members or their rows change: rows get to know where they stand."""
        if self._group is not None:
            for row in self._group.rows:
                self._rows[row].keys += self._steps
        self._group, self._steps = None, 0

    def step(self, group: DecodeGroup) -> tuple[int, npt.NDArray[np.int32]]:
        """Everyone takes a token: (keys that are read, tokens that are drawn)."""
        if not group.rows:
            return 0, self._ordinary[:0]
        if group is not self._group:
            self.forget()
            self._enter(group)
        self._steps += 1
        self._keys += len(group.rows)
        tokens = self._ordinary
        if self._ends and self._ends[0][0] <= self._steps:
            tokens = tokens.copy()
            while self._ends and self._ends[0][0] <= self._steps:
                tokens[heapq.heappop(self._ends)[1]] = STOP_TOKEN
        return self._keys, tokens

    def _enter(self, group: DecodeGroup) -> None:
        members = [self._rows[row] for row in group.rows]
        self._group = group
        self._keys = sum(member.keys for member in members)
        self._ends = [(member.end - member.keys - 1, at) for at, member in enumerate(members)]
        heapq.heapify(self._ends)
        self._ordinary = np.full(len(members), self._some_token, np.int32)
