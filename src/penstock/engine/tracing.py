"""Takes a timeline of one instance while it runs.

Theory. Nothing of the engine knows that it is traced: the loop, its executor and its policies are replaced by ones that
note the time around what they pass on, so an engine that is not traced pays nothing.

When the device worked is told by the executor (`Tracer.note_span`). Of one that does not tell, a step began when it was
submitted and the one before it was over, and took as long as its result says. Copies
between the tiers are placed likewise, for their order is known and how long they took: behind the steps of earlier
plans and behind each other.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from penstock.core.clock import Clock
from penstock.core.executor import DeviceSpan, Executor, ModelFacts, StepResult, Ticket
from penstock.core.plan import Plan, Toward
from penstock.core.request import Request
from penstock.core.sequence import FinishReason
from penstock.engine.chrome_trace import write_chrome_trace
from penstock.engine.loop import Engine, build_engine
from penstock.engine.messages import Update
from penstock.engine.scheduler import Scheduler
from penstock.engine.timeline import HostSlice, Phase, Slice, Timeline, TracedStep
from penstock.policy.presets import Policies

log = logging.getLogger(__name__)
MOST_STEPS = 200_000  # a file of more is no longer looked at
METERED = frozenset({"admit", "batch", "choose", "victim"})


class Tracer:
    """Notes what happens, in order. now_s: the clock of the executor's spans. path: written when the engine closes."""

    def __init__(self, path: Path, now_s: Callable[[], float] = time.monotonic, most_steps: int = MOST_STEPS) -> None:
        self.timeline = Timeline()
        self.now_s = now_s
        self._path = path
        self._most_steps = most_steps
        self._phase, self._at_s = Phase.NOTHING, now_s()  # since when
        self._span: DeviceSpan | None = None
        self._last: TracedStep | None = None
        self._out: deque[TracedStep] = deque()
        self._moving: dict[int, tuple[TracedStep, TracedStep | None]] = {}  # by plan, with the step before it
        self._device_stop_s = self._lane_stop_s = self._at_s

    @property
    def phase(self) -> Phase:
        """What the host does now."""
        return self._phase

    def enter(self, phase: Phase) -> float:
        """The host does something else from now on; the time now."""
        now_s = self.now_s()
        if not self.timeline.is_cut:
            self.timeline.phases.append(HostSlice(self._phase, self._at_s, now_s))
        self._phase, self._at_s = phase, now_s
        return now_s

    def note_policy(self, name: str, start_s: float) -> None:
        """A policy has answered."""
        if not self.timeline.is_cut:
            self.timeline.policies.append(Slice(name, start_s, self.now_s()))

    def note_span(self, span: DeviceSpan) -> None:
        """When the device worked on the step whose result is read next."""
        self._span = span

    def note_submitted(self, plan: Plan) -> None:
        """A plan has just been handed out."""
        step = TracedStep(
            plan_id=plan.id,
            submit_s=self._at_s,
            submitted_s=self.now_s(),
            decode_rows=plan.decode.tokens,
            chunks=len(plan.chunks),
            chunk_tokens=plan.tokens - plan.decode.tokens,
            blocks_out=sum(move.toward is Toward.HOST for move in plan.moves),
            blocks_in=sum(move.toward is Toward.DEVICE for move in plan.moves),
        )
        self._out.append(step)
        if plan.moves:
            self._moving[plan.id] = step, self._last
        self._last = step
        if len(self.timeline.steps) < self._most_steps:
            self.timeline.steps.append(step)
        elif not self.timeline.is_cut:
            self.timeline.is_cut = True
            log.warning("the trace has %d steps: what follows is not kept", self._most_steps)

    def note_result(self, result: StepResult) -> None:
        """The oldest plan's result has just been read."""
        step, read_s = self._out.popleft(), self.enter(Phase.RESULTS)
        start_s = max(step.submit_s, self._device_stop_s)
        stop_s = start_s + result.device_s
        if self._span is not None:
            start_s, stop_s, step.how = self._span.start_s, self._span.stop_s, self._span.how
            self._span = None
        # times of two clocks must not contradict the order of things
        step.start_s = min(max(start_s, step.submit_s, self._device_stop_s), read_s)
        step.stop_s = self._device_stop_s = min(max(stop_s, step.start_s), read_s)
        for plan_id, seconds in result.moved:
            self._note_copies(*self._moving.pop(plan_id), seconds, read_s)

    def _note_copies(self, step: TracedStep, before: TracedStep | None, seconds: float, read_s: float) -> None:
        start_s = max(step.submit_s, self._lane_stop_s, 0.0 if before is None else before.stop_s or 0.0)
        start_s = min(start_s, read_s)
        self._lane_stop_s = min(start_s + seconds, read_s)
        if not self.timeline.is_cut:
            name = f"{step.blocks_out} blocks out, {step.blocks_in} in"
            self.timeline.copies.append(Slice(name, start_s, self._lane_stop_s))

    def write(self) -> None:
        """The timeline as a file; says in the log if that cannot be."""
        try:
            write_chrome_trace(self.timeline, self._path)
        except OSError as error:
            log.error("the trace could not be written to %s: %s", self._path, error.strerror)


class TracedExecutor:
    """Passes everything on, and notes it."""

    def __init__(self, executor: Executor, tracer: Tracer) -> None:
        self._executor = executor
        self._tracer = tracer

    @property
    def facts(self) -> ModelFacts:
        return self._executor.facts

    @property
    def max_rows(self) -> int:
        return self._executor.max_rows

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        self._executor.allocate(n_blocks, n_host_blocks)

    def submit(self, plan: Plan) -> Ticket:
        self._tracer.enter(Phase.SUBMIT)
        ticket = self._executor.submit(plan)
        self._tracer.note_submitted(plan)
        return ticket

    def collect(self, ticket: Ticket) -> StepResult:
        self._tracer.enter(Phase.WAIT)
        result = self._executor.collect(ticket)
        self._tracer.note_result(result)
        return result

    def close(self) -> None:
        self._executor.close()


class TracedEngine(Engine):
    """An engine whose steps are noted, and written down when it closes."""

    def __init__(self, scheduler: Scheduler, executor: Executor, clock: Clock, look_ahead: int, tracer: Tracer) -> None:
        super().__init__(scheduler, executor, clock, look_ahead)
        self.tracer = tracer

    def add(self, request: Request, age_s: float | None = None) -> None:
        if self.tracer.phase is Phase.NOTHING:
            self.tracer.enter(Phase.OUTSIDE)
        super().add(request, age_s)

    def step(self) -> list[Update]:
        self.tracer.enter(Phase.PLAN)
        updates = super().step()
        self.tracer.enter(Phase.STALLED if self.is_stalled else Phase.OUTSIDE if self.has_work else Phase.NOTHING)
        return updates

    def close(self, reason: FinishReason = FinishReason.ABORT) -> None:
        self.tracer.enter(Phase.NOTHING)
        super().close(reason)
        self.tracer.write()


class _Metered:
    """A policy that is timed. It shows the class of the policy, for observers are found by theirs."""

    def __init__(self, policy: object, tracer: Tracer) -> None:
        self._policy = policy
        self._tracer = tracer

    @property  # type: ignore[misc]  # mypy takes the one of `object` for an attribute
    def __class__(self) -> Any:
        return type(self._policy)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._policy, name)
        if name not in METERED:
            return found

        def timed(*args: Any) -> Any:
            start_s = self._tracer.now_s()
            answer = found(*args)
            self._tracer.note_policy(f"{type(self).__name__}.{name}", start_s)
            return answer

        self.__dict__[name] = timed
        return timed


def metered(policies: Policies, tracer: Tracer) -> Policies:
    """The same policies; each answer of `METERED` is noted. Errors name a policy as ever."""

    def one(policy: object) -> Any:
        return type(type(policy).__name__, (_Metered,), {})(policy, tracer)

    return replace(policies, admit=one(policies.admit), batch=one(policies.batch), preempt=one(policies.preempt))


def build_traced_engine(
    tracer: Tracer, executor: Executor, n_blocks: tuple[int, ...], policies: Policies, **options: Any
) -> Engine:
    """As `build_engine`, whose `options` these are."""
    return build_engine(
        TracedExecutor(executor, tracer),
        n_blocks,
        metered(policies, tracer),
        new_engine=partial(TracedEngine, tracer=tracer),
        **options,
    )
