"""The engine of a step log, built again: where do its decisions differ, and what would requests have waited?

*Decisions*: the engine is built from the log's header, gets the same requests before the same turns at the same times,
its steps take what they took, and every plan must be the one that was logged; the first that is not shows where engine
and simulator part. *Closed*: the same requests at the same times, but on the virtual clock, with predicted times; what
the engine measured of each request is compared.

What is not in a log: the content of answers. Prompts that go on from an answer hit the prefix cache behind it in the
engine and not here, so the decisions of conversations may differ there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock.core.errors import Overloaded
from penstock.core.executor import Executor, ModelFacts, StepResult, Ticket
from penstock.core.plan import Plan, Toward
from penstock.core.request import Request, SamplingParams
from penstock.core.view import Estimate
from penstock.cost.devices import Device
from penstock.cost.load import Floats, StepLoad
from penstock.cost.model import CostModel
from penstock.engine.limits import QueueLimits
from penstock.engine.loop import Engine, build_engine
from penstock.engine.messages import Update
from penstock.engine.scheduler import SEED_STRIDE
from penstock.engine.step_log import Arrival, Cut, End, Step, StepLogError
from penstock.policy.presets import build_policies
from penstock.sim.calibrate import Log
from penstock.sim.executor import STOP_TOKEN, JumpingClock, WaitableClock
from penstock.sim.instance import Hardware, simulated_engine
from penstock.workload.prompts import PromptStream
from penstock.workload.trace import TraceRequest

ENDLESS_TOKENS = 2**30  # of answers that the model did not end itself
IDLE_TURNS = 100_000  # without a plan: the replayed policies wait for something that never comes


class _Told:
    """A cost model that says what steps took, in their order; behind the last one, what that took."""

    front_s = 0.0

    def __init__(self, steps: Sequence[Step]) -> None:
        self._seconds = iter([step.device_s for step in steps])
        self._last_s = steps[-1].device_s

    def step(self, load: StepLoad) -> Estimate:
        return Estimate(next(self._seconds, self._last_s), 0.0)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        return np.fromiter((next(self._seconds, self._last_s) for _ in keys), float, len(keys))

    def host_s(self, load: StepLoad) -> float:
        return 0.0

    def move_s(self, n_bytes: int, toward: Toward) -> float:
        return 0.0

    def describe(self) -> str:
        return "steps take what they took"


class _ToldClock:
    """A clock that is set; nobody waits on it."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    def wait_until(self, at_s: float) -> None:
        """What happens takes no time here."""


class _Again:
    """The engine of a log, the requests of the log, and the plans that it makes now."""

    def __init__(
        self,
        log: Log,
        cost: CostModel,
        clock: WaitableClock,
        device: Device,
        known: CostModel | None,
        build: Callable[..., Engine] = build_engine,
    ) -> None:
        header = log.header
        self._log = log
        self._requests = {
            event.id: self._request(number, event)
            for number, event in enumerate(log.events)
            if isinstance(event, Arrival)
        }
        self._answers = {
            (request.seed + index * SEED_STRIDE) % 2**63: self._answer_tokens(name, index)
            for name, request in self._requests.items()
            for index in range(request.sampling.n)
        }
        hardware = Hardware(
            facts=replace(header.facts, stop_token_ids=frozenset({STOP_TOKEN})),
            device=device,
            cost=cost,
            n_blocks=header.n_blocks,
            n_host_blocks=header.n_host_blocks,
            max_rows=header.max_rows,
            known_cost=known,
        )
        self.engine: Engine = simulated_engine(
            hardware,
            build_policies(header.policy, header.slots, header.policy_options),
            clock,
            lambda seed: self._answers[seed],
            limits=QueueLimits(
                max_queued_requests=header.max_queued_requests, max_queued_tokens=header.max_queued_tokens
            ),
            look_ahead=header.look_ahead,
            share_prefixes=header.prefix_caching,
            build=build,
        )

    def _request(self, number: int, arrival: Arrival) -> Request:
        block_tokens = self._log.header.facts.states[0].block_tokens
        stream = PromptStream(vocab_stop=min(256, self._log.header.facts.vocab_size), block_tokens=block_tokens)
        row = TraceRequest(
            arrival_s=0.0, input_tokens=arrival.prompt_tokens, output_tokens=1, block_hashes=arrival.blocks
        )
        ids = stream.ids(number, row)
        whole = len(arrival.blocks) * block_tokens
        own = stream.ids(number, TraceRequest(arrival_s=0.0, input_tokens=len(ids) - whole + 1, output_tokens=1))
        return Request(
            id=arrival.id,
            prompt=array("i", [*ids[:whole], *own[: len(ids) - whole]]),
            sampling=SamplingParams(
                max_tokens=arrival.max_tokens, n=arrival.n, prompt_logprobs=arrival.prompt_logprobs, temperature=1.0
            ),
            arrival_s=arrival.arrival_s,
            objective=arrival.objective,
            priority=arrival.priority,
            client=arrival.client,
            program=arrival.program,
            turn=arrival.request_turn,
            category=arrival.category,
            seed=number,
        )

    def _answer_tokens(self, name: str, index: int) -> int:
        end = self._log.ends.get((name, index))
        return end.output_tokens if end is not None and end.is_by_token else ENDLESS_TOKENS

    def happen(self, event: Arrival | Cut) -> None:
        match event:
            case Arrival():
                try:
                    self.engine.add(self._requests[event.id])
                except Overloaded:  # it was accepted then: the decisions differ before this one
                    return
            case Cut(index=None):
                self.engine.abort(event.id)
            case Cut(index=int(index)):
                self.engine.finish(event.id, index, event.output_tokens)


# --- decisions --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Parting:
    """The first step that is planned otherwise. planned None: nothing is planned any more."""

    logged: Step
    planned: Step | None


def replay_decisions(log: Log, device: Device, known: CostModel | None) -> tuple[int, Parting | None]:
    """(steps that were planned alike, the first that was not). known: what policies knew of costs.

    Raises StepLogError if the log has not everything since the engine's start.
    """
    _need_whole(log)
    clock = _ToldClock()
    made: list[Plan] = []

    def build(executor: Executor, *parts: Any, **options: Any) -> Engine:
        return build_engine(_Noting(executor, made), *parts, **options)

    again = _Again(log, _Told(log.steps), clock, device, known, build)
    events = iter(log.events)
    event = next(events, None)
    turn = 0
    for number, step in enumerate(log.steps):
        while turn <= step.turn:
            while event is not None and event.turn <= turn:
                clock.at_s = event.at_s
                again.happen(event)
                event = next(events, None)
            clock.at_s = step.at_s if turn == step.turn else clock.at_s
            again.engine.step()
            turn += 1
        planned = _as_logged(turn - 1, made[number]) if number < len(made) else None
        if planned is None or _decision(planned) != _decision(step):
            return number, Parting(step, planned)
    return len(log.steps), None


class _Noting:
    """Passes everything on, and keeps the plans."""

    def __init__(self, executor: Executor, made: list[Plan]) -> None:
        self._executor = executor
        self._made = made

    @property
    def facts(self) -> ModelFacts:
        return self._executor.facts

    @property
    def max_rows(self) -> int:
        return self._executor.max_rows

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        self._executor.allocate(n_blocks, n_host_blocks)

    def submit(self, plan: Plan) -> Ticket:
        self._made.append(plan)
        return self._executor.submit(plan)

    def collect(self, ticket: Ticket) -> StepResult:
        return self._executor.collect(ticket)

    def close(self) -> None:
        self._executor.close()


def _as_logged(turn: int, plan: Plan) -> Step:
    return Step(
        turn=turn,
        plan=plan.id,
        at_s=0.0,
        decode_rows=plan.decode.tokens,
        decode_keys=0.0,
        chunks=tuple((chunk.start, chunk.stop, chunk.first_layer, chunk.stop_layer) for chunk in plan.chunks),
        samples=plan.decode.tokens + len(plan.sampling_chunks),
        starts=len(plan.starts),
        ends=len(plan.ends),
        out_blocks=sum(move.toward is Toward.HOST for move in plan.moves),
        in_blocks=sum(move.toward is Toward.DEVICE for move in plan.moves),
        device_s=0.0,
        host_s=0.0,
    )


def _decision(step: Step) -> tuple[object, ...]:
    return (
        step.turn, step.plan, step.decode_rows, step.chunks, step.samples, step.starts, step.ends, step.out_blocks,
        step.in_blocks,
    )  # fmt: skip


def show_decision(step: Step | None) -> str:
    if step is None:
        return "nothing"
    chunks = ", ".join(f"[{start}, {stop})" for start, stop, _, _ in step.chunks) or "none"
    return (
        f"turn {step.turn}: {step.decode_rows} rows decode, chunks {chunks}, {step.starts} start, {step.ends} end, "
        f"{step.out_blocks} blocks out, {step.in_blocks} in"
    )


def _need_whole(log: Log) -> None:
    if log.why_open:
        raise StepLogError(f"{log.path}: its decisions cannot be replayed, for {log.why_open}")


# --- closed -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Seen:
    """What the engine measured of a sample: in the log, and predicted."""

    logged: End
    predicted: End


def replay_closed(log: Log, device: Device, cost: CostModel, known: CostModel | None) -> list[Seen]:
    """Samples that ended in both, in the order of their arrival.

    Raises StepLogError if the log has not everything since the engine's start.
    """
    _need_whole(log)
    clock = JumpingClock()
    again = _Again(log, cost, clock, device, known)
    found: dict[tuple[str, int], End] = {}
    idle = 0
    for event in _due(log, again, clock):
        updates: list[Update] = again.engine.take_updates() if event else again.engine.step()
        idle = 0 if updates else idle + 1
        if idle > IDLE_TURNS:
            break
        for update in updates:
            if update.finish is not None and update.stats is not None:
                stats = update.stats
                found[update.request_id, update.index] = End(
                    id=update.request_id, index=update.index, output_tokens=stats.output_tokens,
                    queue_s=stats.queue_s, ttft_s=stats.ttft_s, e2e_s=stats.e2e_s,
                )  # fmt: skip
    return [Seen(end, found[key]) for key, end in log.ends.items() if key in found]


def _due(log: Log, again: _Again, clock: JumpingClock) -> Iterator[bool]:
    """True where something came, False where it is the engine's turn, until both are over."""
    events = iter(log.events)
    event = next(events, None)
    while event is not None or again.engine.has_work:
        if event is not None and (event.at_s <= clock.now_s() or not again.engine.has_work):
            clock.wait_until(event.at_s)
            again.happen(event)
            event = next(events, None)
            yield True
        else:
            if again.engine.is_stalled:
                clock.advance(0.01)
            yield False
