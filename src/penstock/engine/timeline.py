"""What a trace holds, and what it says: when the device worked, and why it rested.

The host's time falls into phases that follow each other, the device's into steps and the gaps between them. A gap has a
cause: what the host did meanwhile, or what the device waited for by itself.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

SHORTEST_GAP_S = 1e-6
BIGGEST = 5


class Phase(Enum):
    """What the host does; one at a time."""

    PLAN = "plan"  # the scheduler and its policies
    SUBMIT = "submit"
    WAIT = "wait"  # for the oldest result
    RESULTS = "results"  # taking one in
    OUTSIDE = "outside"  # the caller: commands, tokens that are handed out
    STALLED = "policies wait"  # there is work, and they start none of it
    NOTHING = "nothing to do"


CAUSES = {phase: f"host late: {phase.value}" for phase in Phase} | {
    Phase.WAIT: "host late: waking up for the result",
    Phase.STALLED: Phase.STALLED.value,
    Phase.NOTHING: Phase.NOTHING.value,
}
RESTING = frozenset({Phase.STALLED, Phase.NOTHING})


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of time."""

    name: str
    start_s: float
    stop_s: float

    @property
    def seconds(self) -> float:
        return self.stop_s - self.start_s


@dataclass(frozen=True, slots=True)
class HostSlice:
    """A phase of the host."""

    phase: Phase
    start_s: float
    stop_s: float


@dataclass(slots=True, kw_only=True)
class TracedStep:
    """A plan and what became of it. start_s, stop_s: on the device; None while its result was not read."""

    plan_id: int
    submit_s: float
    submitted_s: float
    decode_rows: int
    chunks: int
    chunk_tokens: int
    blocks_out: int
    blocks_in: int
    start_s: float | None = None
    stop_s: float | None = None
    how: str = ""

    @property
    def kind(self) -> str:
        if self.decode_rows and self.chunks:
            return "mixed"
        return "decode" if self.decode_rows else "prefill" if self.chunks else "moves only"


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Everything that was noted, each list in the order of time. is_cut: it went on for longer than was kept."""

    phases: list[HostSlice] = field(default_factory=list)
    policies: list[Slice] = field(default_factory=list)
    steps: list[TracedStep] = field(default_factory=list)
    copies: list[Slice] = field(default_factory=list)
    is_cut: bool = False

    def device_steps(self) -> Iterator[tuple[TracedStep, float, float]]:
        """Steps that ran, and from when to when."""
        for step in self.steps:
            if step.start_s is not None and step.stop_s is not None:
                yield step, step.start_s, step.stop_s

    def gaps(self) -> list[Slice]:
        """Where the device rested between two steps; named by the cause."""
        found = []
        starts_s = [phase.start_s for phase in self.phases]
        copies_s = [copy.start_s for copy in self.copies]
        before_s: float | None = None
        for step, start_s, stop_s in self.device_steps():
            if before_s is not None and start_s - before_s >= SHORTEST_GAP_S:
                found.append(Slice(self._cause(step, before_s, start_s, starts_s, copies_s), before_s, start_s))
            before_s = stop_s
        return found

    def _cause(
        self, step: TracedStep, start_s: float, stop_s: float, phases_s: Sequence[float], copies_s: Sequence[float]
    ) -> str:
        """Why the device rested before `step`. phases_s, copies_s: when each began."""
        if step.submitted_s <= start_s:
            last = bisect_left(copies_s, stop_s) - 1  # of the copies that began before; none overlaps another
            is_copying = last >= 0 and self.copies[last].stop_s > start_s
            return "waiting for a copy" if is_copying else "start of the next step"
        by_phase = dict.fromkeys(Phase, 0.0)
        for host in self.phases[max(0, bisect_right(phases_s, start_s) - 1) :]:
            if host.start_s >= stop_s:
                break
            by_phase[host.phase] += min(stop_s, host.stop_s) - max(start_s, host.start_s)
        longest = max(by_phase, key=lambda phase: by_phase[phase])
        return CAUSES[longest]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """busy_s: the device works. gaps_s: it rests, by cause. host_s: by phase. kinds: (steps, seconds on the device)."""

    wall_s: float
    busy_s: float
    steps: int
    gaps_s: Mapping[str, float]
    biggest_gaps: tuple[Slice, ...]
    host_s: Mapping[str, float]
    policies_s: float
    kinds: Mapping[str, tuple[int, float]]
    start_s: float
    is_cut: bool

    @property
    def busy_frac(self) -> float:
        return self.busy_s / self.wall_s if self.wall_s else 0.0

    def as_dict(self) -> dict[str, object]:
        """For machines."""
        per_step = 1e6 / max(1, self.steps)
        return {
            "steps": self.steps,
            "is_cut": self.is_cut,
            "wall_s": self.wall_s,
            "busy_frac": self.busy_frac,
            "kinds": {name: {"steps": count, "s": seconds} for name, (count, seconds) in self.kinds.items()},
            "gaps_s": dict(self.gaps_s),
            "biggest_gaps": [
                {"cause": gap.name, "s": gap.seconds, "at_s": gap.start_s - self.start_s} for gap in self.biggest_gaps
            ],
            "host_us_per_step": {phase: seconds * per_step for phase, seconds in self.host_s.items()},
            "policies_us_per_step": self.policies_s * per_step,
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """(what, value), for people."""
        cut = ", the first ones only" if self.is_cut else ""
        yield "steps", f"{self.steps:,}{cut}"
        yield "the device works", f"{self.busy_frac:.1%} of {self.wall_s:.3f} s"
        for name, (count, seconds) in self.kinds.items():
            yield f"- {name}", f"{count:,} x {1e3 * seconds / count:.3f} ms"
        for cause, seconds in sorted(self.gaps_s.items(), key=lambda item: -item[1]):
            yield f"it rests: {cause}", f"{seconds / self.wall_s:.1%}"
        for gap in self.biggest_gaps:
            yield "- a gap of", f"{1e3 * gap.seconds:.3f} ms at {gap.start_s - self.start_s:.3f} s: {gap.name}"
        for phase, seconds in self.host_s.items():
            yield f"host, {phase}, per step", f"{1e6 * seconds / max(1, self.steps):.1f} us"
        yield "- of the plan, policies", f"{1e6 * self.policies_s / max(1, self.steps):.1f} us"


def summarise(timeline: Timeline) -> TraceSummary:
    """Of the time from the first submission to the last result, so that idle ends do not count."""
    ran = list(timeline.device_steps())
    kinds: dict[str, tuple[int, float]] = {}
    for step, start_s, stop_s in ran:
        name = f"{step.kind}, {step.how}" if step.how else step.kind
        count, seconds = kinds.get(name, (0, 0.0))
        kinds[name] = count + 1, seconds + stop_s - start_s
    gaps = timeline.gaps()
    gaps_s: dict[str, float] = {}
    for gap in gaps:
        gaps_s[gap.name] = gaps_s.get(gap.name, 0.0) + gap.seconds
    host_s = {phase.value: 0.0 for phase in Phase if phase not in RESTING}
    for host in timeline.phases:
        if host.phase not in RESTING:
            host_s[host.phase.value] += host.stop_s - host.start_s
    start_s = ran[0][0].submit_s if ran else 0.0
    return TraceSummary(
        wall_s=ran[-1][2] - start_s if ran else 0.0,
        busy_s=sum(stop_s - start_s for _, start_s, stop_s in ran),
        steps=len(ran),
        gaps_s=gaps_s,
        biggest_gaps=tuple(sorted(gaps, key=lambda gap: -gap.seconds)[:BIGGEST]),
        host_s=host_s,
        policies_s=sum(policy.seconds for policy in timeline.policies),
        kinds=dict(sorted(kinds.items(), key=lambda item: -item[1][1])),
        start_s=start_s,
        is_cut=timeline.is_cut,
    )
