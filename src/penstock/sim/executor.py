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
from typing import Protocol

import numpy as np
import numpy.typing as npt

from penstock.core.clock import Clock, VirtualClock
from penstock.core.executor import ModelFacts, StepResult, Ticket
from penstock.core.plan import Chunk, DecodeGroup, Plan
from penstock.cost.follow import PlanLoads
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
        self._loads = PlanLoads(facts)
        self._some_token = some_token
        self._ends: dict[int, int] = {}  # by row: tokens of the whole sequence, prompt and answer
        self._endings: list[tuple[int, int]] = []  # (step of the decode group, row), a heap
        self._ordinary = np.zeros(0, np.int32)
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
        load = self._loads.follow(plan)
        tokens = self._tokens(plan)
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

    def _tokens(self, plan: Plan) -> npt.NDArray[np.int32]:
        """What the samples of a plan are, which has been followed."""
        for row in plan.ends:
            del self._ends[row]
        for start in plan.starts:
            self._ends[start.row] = start.prompt_tokens + self._length_of(start.seed)
        drawn = [self._draw(plan.chunks[at]) for at in plan.sampling_chunks]
        tokens = self._decoded(plan.decode)
        return np.concatenate((tokens, np.array(drawn, np.int32))) if drawn else tokens

    def _draw(self, chunk: Chunk) -> int:
        return STOP_TOKEN if chunk.stop + 1 >= self._ends[chunk.row] else self._some_token

    def _decoded(self, group: DecodeGroup) -> npt.NDArray[np.int32]:
        """A calendar says when a member's answer ends, so a step of unchanged members costs nothing per member."""
        loads = self._loads
        for row in loads.joined:
            heapq.heappush(self._endings, (loads.steps + self._ends[row] - loads.keys(row) - 1, row))
        if len(self._ordinary) < group.tokens:
            self._ordinary = np.full(2 * group.tokens, self._some_token, np.int32)
        tokens = self._ordinary[: group.tokens]
        if not group.rows or not self._endings or self._endings[0][0] > loads.steps:
            return tokens
        tokens = tokens.copy()
        while self._endings and self._endings[0][0] <= loads.steps:
            row = heapq.heappop(self._endings)[1]
            # it may have left since, and another may have its row
            if loads.is_decoding(row) and loads.keys(row) + 1 >= self._ends[row]:
                tokens[group.rows.index(row)] = STOP_TOKEN
        return tokens
