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
from penstock.core.executor import Foresight, ModelFacts, StepResult, Ticket
from penstock.core.plan import Chunk, DecodeGroup, Leap, Plan
from penstock.cost.follow import PlanLoads
from penstock.cost.load import Floats, StepLoad
from penstock.cost.model import CostModel

SOME_TOKEN, STOP_TOKEN = 1, 0
LengthOf = Callable[[int], int]  # seed of a sequence -> how many tokens its answer has


class WaitableClock(Clock, Protocol):
    """A clock on which one can wait."""

    def wait_until(self, at_s: float) -> None: ...


class JumpingClock(VirtualClock):
    """Virtual time: waiting is free."""

    def wait_until(self, at_s: float) -> None:
        self._now_s = max(self._now_s, at_s)


class SleepingClock:
    """Real time, for a simulated engine behind a real server."""

    def now_s(self) -> float:
        return time.monotonic()

    def wait_until(self, at_s: float) -> None:
        time.sleep(max(0.0, at_s - time.monotonic()))


@dataclass(frozen=True, slots=True)
class _Ahead:
    """ends_s: the clock after each step that is foreseen. done_s, device_s: ends and lengths of the steps that are out,
    and then of those that are foreseen.
    """

    ends_s: Floats
    done_s: Floats
    device_s: Floats


class SimExecutor:
    """Predicts instead of computing. length_of: the answer's length by the seed of its request; the policies never see
    it, for they see plans and tokens only. has_own_host_time: the host's work takes real time here, and none is added.
    some_token: what answers consist of.
    """

    def __init__(
        self,
        facts: ModelFacts,
        cost: CostModel,
        clock: WaitableClock,
        length_of: LengthOf,
        *,
        max_rows: int,
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
        self._ahead: _Ahead | None = None
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
        seconds = sum(self._cost.move_s(self._facts.states[move.group].block_bytes, move.toward) for move in plan.moves)
        self._lane_busy_until_s = max(self._lane_busy_until_s, self._clock.now_s()) + seconds
        return ((plan.id, seconds),)

    def collect(self, ticket: Ticket) -> StepResult:
        done_s, plan_id, result = self._submitted.popleft()
        assert plan_id == ticket.plan_id, f"{ticket} is not the oldest: collect {plan_id} first"
        self._clock.wait_until(done_s)
        return result

    def foresee(self, group: DecodeGroup, steps: int) -> Foresight | None:
        """Until a window is full, or a result is collected with which an answer ends."""
        loads, rows = self._loads, len(group.rows)
        if self._has_own_host_time or group is not loads.group:
            return None
        for _, _, result in self._submitted:
            if result.tokens.base is not self._ordinary or len(result.tokens) != rows:
                return None  # an end is on its way, or it is of other members
        if self._endings:
            steps = min(steps, self._endings[0][0] - loads.steps - 1 + len(self._submitted))
        steps = min(steps, loads.steps_alike)
        if steps < 1:
            return None
        seconds = self._cost.decode_s(rows, loads.keys_ahead(steps))
        done_s, ends_s = self._times(seconds, self._cost.host_s(StepLoad(rows, samples=rows)))
        device_s = np.concatenate(([result.device_s for _, _, result in self._submitted], seconds))
        self._ahead = _Ahead(ends_s, done_s, device_s)
        return Foresight(ends_s=ends_s, device_s=device_s[:steps], tokens=self._ordinary[:rows])

    def _times(self, seconds: Floats, host_s: float) -> tuple[Floats, Floats]:
        """(ends of the steps that are out and of those of `seconds`, the clock after each of the latter), if a plan is
        submitted and a result collected by turns."""
        steps, out_s = len(seconds), [done_s for done_s, _, _ in self._submitted]
        now_s = self._clock.now_s()
        if len(out_s) == 1 and host_s <= min(float(seconds.min()), out_s[0] - now_s):  # the device never waits
            done_s = np.cumsum(np.concatenate((out_s, seconds)))
            return done_s, done_s[:steps]
        done, ends = out_s, []
        for at, step_s in enumerate(seconds.tolist()):
            now_s += host_s
            done.append(max(done[-1], now_s) + step_s)
            now_s = max(now_s, done[at])
            ends.append(now_s)
        return np.array(done), np.array(ends)

    def leap(self, leap: Leap) -> None:
        ahead, self._ahead = self._ahead, None
        assert ahead is not None, "ask what is foreseen first"
        n_out, n_collected = len(self._submitted), max(0, leap.steps - len(self._submitted))
        for row in leap.ends:
            del self._ends[row]
        self._loads.leap(n_collected, leap.ends)
        self._busy_until_s = float(ahead.done_s[leap.steps + n_out - 1])
        self._submitted.clear()
        for at in range(leap.steps, leap.steps + n_out):
            tokens = self._ordinary[: leap.decode.tokens]
            if at >= n_out:  # the others were out before the leap
                self._loads.leap(1)
                tokens = self._with_ends(leap.decode)
            result = StepResult(tokens=tokens, device_s=float(ahead.device_s[at]))
            self._submitted.append((float(ahead.done_s[at]), leap.first_id + at - n_out, result))
        self._clock.wait_until(float(ahead.ends_s[leap.steps - 1]))

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
        return self._with_ends(group)

    def _with_ends(self, group: DecodeGroup) -> npt.NDArray[np.int32]:
        """The tokens of the step that was followed last."""
        loads = self._loads
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
