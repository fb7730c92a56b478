"""A simulation from its description: parts joined, run, and given back as the same `Run` that a replay makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from penstock.core.errors import UnknownName
from penstock.engine.limits import QueueLimits
from penstock.policy.presets import Policies
from penstock.sim.fleet import DISPATCHERS, Answers, Fleet
from penstock.sim.instance import Hardware, Instance, simulated_engine
from penstock.workload.kinds import Pacing
from penstock.workload.prompts import DEFAULT_BLOCK_TOKENS, PromptStream
from penstock.workload.records import RequestRecord, Run, RunHeader
from penstock.workload.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated. policies: makes a fresh set for each instance, for they keep state."""

    hardware: Hardware
    policies: Callable[[], Policies]
    label: str = ""
    n_instances: int = 1
    dispatch: str = "least-loaded"
    pacing: Pacing = Pacing.OPEN
    seed: int = 0
    are_lengths_hidden: bool = False
    limits: QueueLimits | None = None

    def __post_init__(self) -> None:
        if self.dispatch not in DISPATCHERS:
            raise UnknownName("dispatcher", self.dispatch, DISPATCHERS)

    @property
    def price_per_hour(self) -> float:
        return self.n_instances * self.hardware.device.price_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Every `n_jobs`-th instance, from number `job` on, of a fleet behind a dispatcher that goes round."""

    job: int = 0
    n_jobs: int = 1


WHOLE = Share()


class Recorded(Protocol):
    """What has served a trace."""

    records: list[RequestRecord]


def fleet_of(setup: Setup, trace: Trace, share: Share = WHOLE) -> Fleet:
    """Instances, dispatcher and prompts, ready to run. A share of a fleet passes over requests of other instances."""
    answers = Answers()

    def instance(index: int) -> Instance:
        return Instance(
            index,
            lambda clock: simulated_engine(
                setup.hardware, setup.policies(), clock, answers.length_of, limits=setup.limits
            ),
        )

    return Fleet(
        instances=[instance(index) for index in range(len(range(share.job, setup.n_instances, share.n_jobs)))],
        dispatcher=DISPATCHERS[setup.dispatch](),
        prompts=PromptStream(seed=setup.seed, block_tokens=trace.header.block_tokens or DEFAULT_BLOCK_TOKENS),
        answers=answers,
        pacing=setup.pacing,
        are_lengths_hidden=setup.are_lengths_hidden,
        serves=lambda index: index % setup.n_instances % share.n_jobs == share.job,
    )


def run_of(setup: Setup, trace: Trace, fleet: Recorded, *, is_whole: bool = True) -> Run:
    """What a fleet has recorded by now, as a replay would have. is_whole: it came to the trace's end."""
    header = RunHeader(
        trace=trace.header.name,
        url=f"simulated: {setup.n_instances} x {setup.hardware.device.name}, {setup.dispatch}",
        model=setup.hardware.facts.name,
        label=setup.label,
        pacing=setup.pacing.value,
        seed=setup.seed,
        trace_seed=trace.header.seed,
        trace_parameters=trace.header.parameters,
        trace_steps=trace.header.steps,
        is_whole=is_whole,
    )
    front_s = setup.hardware.cost.front_s
    records = sorted(fleet.records, key=lambda record: record.index)
    return Run(header=header, records=tuple(_seen_by_client(record, front_s) for record in records))


def _seen_by_client(record: RequestRecord, front_s: float) -> RequestRecord:
    """Later by what a request takes outside of the engine."""
    if not front_s or record.end_s is None:
        return record
    return replace(record, token_s=tuple(at_s + front_s for at_s in record.token_s), end_s=record.end_s + front_s)
