"""A generator of traffic with the statistics of BurstGPT (arXiv 2401.17644), without its data.

A trace is the sum of services. A service's calls arrive in Gamma gaps under a chain of regimes and a weekly rhythm
(arrivals.py), with lengths from quantile tables (lengths.py). A conversational service's arrivals are *starts of
sessions*: the number of turns is a rounded log-normal, a turn comes a log-normal pause after the answer to the one
before, and its prompt is everything said so far plus new text. `rate_per_s` counts calls, later turns included, and is
exact in expectation: a turn that falls behind the end of the trace is put, as part of a session that began before it,
at the same distance behind its start. Random streams are named by service and purpose: adding a service leaves the
others as they were, and two kinds of traffic with one seed ask for the same lengths in the same order.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.arrivals import Profile, Regime, check_regimes, draw_arrivals, draw_segments
from penstock.workload.lengths import Counts, Floats, LengthModel
from penstock.workload.trace import Trace, TraceError, TraceHeader, TraceRequest

MAX_TURNS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLaw:
    """Turns and pauses of a session; medians and the sigma of the logarithm.

    new_text_frac: text that a later turn adds, relative to the prompt of a first turn. history_cap_tokens: a prompt
    carries at most this much of what was said; services cut it, and without a limit a few long sessions would make the
    mean prompt five times the measured one. Both are our own choice, and the length tables are those of first turns.
    answer_tokens_per_s: assumed speed of an answer, which places later turns in time for open-loop replay; closed-loop
    replay waits for the answer.
    """

    turns_median: float = 2.0
    turns_sigma: float = 1.21
    pause_median_s: float = 131.0
    pause_sigma: float = 2.25
    pause_cap_s: float = 86_400.0
    new_text_frac: float = 0.1
    history_cap_tokens: int = 3072
    answer_tokens_per_s: float = 30.0

    @property
    def mean_turns(self) -> float:
        """Of max(1, round(LogNormal)): the sum over k of the chance to have more than k turns."""
        return 1 + sum(1 - _normal_cdf((math.log(k + 0.5) - math.log(self.turns_median)) / self.turns_sigma)
                       for k in range(1, MAX_TURNS))  # fmt: skip

    def draw_turns(self, rng: np.random.Generator, count: int) -> Counts:
        turns = np.rint(rng.lognormal(math.log(self.turns_median), self.turns_sigma, count))
        return np.clip(turns, 1, MAX_TURNS).astype(np.int64)

    def draw_pauses_s(self, rng: np.random.Generator, count: int) -> Floats:
        pauses_s = rng.lognormal(math.log(self.pause_median_s), self.pause_sigma, count)
        return np.minimum(pauses_s, self.pause_cap_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """One stream of calls. sessions None: every call stands alone. failed_frac: mean share of failed calls; the
    chance of each follows the load of the minute before it, to the power failed_power."""

    name: str
    rate_per_s: float
    lengths: LengthModel
    regimes: tuple[Regime, ...]
    profile: Profile = field(default_factory=Profile)
    sessions: SessionLaw | None = None
    category: str = "conversation"
    model: str = ""
    n_clients: int = 1
    objective: Objective = NO_OBJECTIVE
    failed_frac: float = 0.0
    failed_power: float = 2.0

    def __post_init__(self) -> None:
        check_regimes(self.regimes)
        if not 0 < self.rate_per_s < float("inf"):
            raise TraceError(f"service {self.name}: rate_per_s is {self.rate_per_s}, give a positive number")
        if not 0 <= self.failed_frac < 1 or self.n_clients < 1:
            raise TraceError(f"service {self.name}: failed_frac must be in [0, 1) and n_clients 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSpec:
    """Everything that makes a trace, but its seed. block_tokens: write block hashes of this many tokens.

    is_path_exact: the mean rate holds on the path of regimes that was drawn, not only in the long run.
    """

    name: str
    duration_s: float
    services: tuple[ServiceSpec, ...]
    block_tokens: int | None = None
    is_path_exact: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.duration_s < float("inf"):
            raise TraceError(f"duration_s is {self.duration_s}: give a positive number")
        if not self.services or len({service.name for service in self.services}) != len(self.services):
            raise TraceError("a generator needs one or more services with different names")

    @property
    def rate_per_s(self) -> float:
        return sum(service.rate_per_s for service in self.services)


def generate(spec: GeneratorSpec, seed: int) -> Trace:
    """The trace of a spec and a seed: the same rows wherever and whenever it is made."""
    parts = [_Calls.draw(partial(_stream, seed, service.name), service, spec) for service in spec.services]

    def source() -> Iterator[TraceRequest]:
        rows = (part.rows(service, spec.block_tokens) for part, service in zip(parts, spec.services, strict=True))
        return heapq.merge(*rows, key=lambda request: request.arrival_s)

    parameters: dict[str, Any] = msgspec.to_builtins(spec)
    header = TraceHeader(
        name=spec.name,
        seed=seed,
        parameters=parameters,
        block_tokens=spec.block_tokens,
        steps=(f"generated, {spec.rate_per_s:g} calls/s",),
    )
    return Trace(header, source)


def _stream(seed: int, service: str, purpose: str) -> np.random.Generator:
    key = int.from_bytes(hashlib.blake2b(f"{service}/{purpose}".encode(), digest_size=8).digest(), "little")
    return np.random.default_rng([seed, key])


Streams = Callable[[str], np.random.Generator]  # by purpose


@dataclass(frozen=True, slots=True)
class _Calls:
    """The calls of one service in order of time, one array per field."""

    times_s: Floats
    sessions: Counts
    laps: Counts  # how often the session went round the end of the trace before this call
    turns: Counts
    pauses_s: Floats
    input_tokens: Counts
    output_tokens: Counts
    clients: Counts

    @classmethod
    def draw(cls, stream: Streams, service: ServiceSpec, spec: GeneratorSpec) -> _Calls:
        law = service.sessions
        start_rate_per_s = service.rate_per_s / (law.mean_turns if law else 1.0)
        times, inputs_rng, outputs_rng, pauses_rng = map(stream, ("arrivals", "inputs", "outputs", "pauses"))
        segments = draw_segments(
            times, service.regimes, start_rate_per_s, spec.duration_s, service.profile, is_path_exact=spec.is_path_exact
        )
        starts_s = draw_arrivals(times, segments)
        n_turns = law.draw_turns(stream("turns"), starts_s.size) if law else np.ones(starts_s.size, dtype=np.int64)
        clients = stream("clients").integers(0, service.n_clients, starts_s.size)
        lengths, asked = service.lengths, law or SessionLaw()
        times_s, said, alive = starts_s, np.zeros(starts_s.size), np.arange(starts_s.size)
        pauses_s = np.full(starts_s.size, np.nan)
        turns: list[tuple[Any, ...]] = []
        for turn in range(int(n_turns.max(initial=0))):  # all sessions at once, one turn after the other
            new_text = lengths.draw_inputs(inputs_rng, alive.size) * (asked.new_text_frac if turn else 1.0)
            inputs = np.minimum(said, asked.history_cap_tokens) + new_text
            outputs = lengths.draw_outputs(outputs_rng, inputs)
            turns.append((times_s, alive, np.full(alive.size, turn), pauses_s, inputs, outputs))
            goes_on = n_turns[alive] > turn + 1
            answers_s = lengths.tokens(outputs, lengths.max_output_tokens) / asked.answer_tokens_per_s
            pauses_s = asked.draw_pauses_s(pauses_rng, int(goes_on.sum()))
            times_s = times_s[goes_on] + answers_s[goes_on] + pauses_s
            said, alive = (inputs + outputs)[goes_on], alive[goes_on]
        return cls._joined(stream("failures"), turns, clients, service, spec.duration_s)

    @classmethod
    def _joined(
        cls,
        rng: np.random.Generator,
        turns: list[tuple[Any, ...]],
        clients: Counts,
        service: ServiceSpec,
        duration_s: float,
    ) -> _Calls:
        if not turns:
            raise TraceError(
                f"service {service.name}: no call fell into {duration_s:g} s at {service.rate_per_s:g} calls/s; "
                "make the trace longer or the rate higher"
            )
        times_s, sessions, places, pauses_s, inputs, outputs = (
            np.concatenate(column) for column in zip(*turns, strict=True)
        )
        order = np.lexsort((places, sessions, times_s % duration_s))
        wrapped_s = (times_s % duration_s)[order]
        lengths = service.lengths
        output_tokens = lengths.tokens(outputs[order], lengths.max_output_tokens)
        output_tokens[
            rng.random(order.size) < failure_chances(wrapped_s, service.failed_frac, service.failed_power)
        ] = 0
        return cls(
            times_s=wrapped_s,
            sessions=sessions[order],
            laps=(times_s // duration_s).astype(np.int64)[order],
            turns=places[order],
            pauses_s=pauses_s[order],
            input_tokens=lengths.tokens(inputs[order], lengths.max_input_tokens),
            output_tokens=output_tokens,
            clients=clients[sessions[order]],
        )

    def rows(self, service: ServiceSpec, block_tokens: int | None) -> Iterator[TraceRequest]:
        columns = (self.times_s, self.sessions, self.laps, self.turns, self.pauses_s, self.input_tokens)
        for time_s, session, lap, turn, pause_s, n_input, n_output, client in zip(
            *(column.tolist() for column in (*columns, self.output_tokens, self.clients)), strict=True
        ):
            name = f"{service.name}-{session}" + (f"~{lap}" if lap else "")
            yield TraceRequest(
                arrival_s=round(time_s, 6),
                input_tokens=n_input,
                output_tokens=n_output,
                client=f"{service.name}-client-{client}" if service.n_clients > 1 else service.name,
                session=name if service.sessions else None,
                turn=turn,
                pause_s=None if math.isnan(pause_s) else round(pause_s, 6),
                category=service.category,
                model=service.model,
                objective=service.objective,
                block_hashes=block_hashes(name, n_input, block_tokens) if block_tokens else (),
            )


def failure_chances(times_s: Floats, failed_frac: float, failed_power: float, window_s: float = 60.0) -> Floats:
    """Chance of each call to fail, by the load of the window before it; in the mean failed_frac."""
    recent = np.arange(times_s.size) - np.searchsorted(times_s, times_s - window_s) + 1
    load = (recent / recent.mean()) ** failed_power
    chances: Floats = np.minimum(1.0, failed_frac * load / load.mean())
    return chances


def block_hashes(session: str, input_tokens: int, block_tokens: int) -> tuple[int, ...]:
    """Identity of a prompt's blocks: full ones are shared by the turns of a session, a partial last one is its own."""
    sizes = [block_tokens] * (input_tokens // block_tokens)
    if input_tokens % block_tokens:
        sizes.append(input_tokens % block_tokens)
    digests = (
        hashlib.blake2b(f"{session}/{place}/{size}".encode(), digest_size=8).digest()
        for place, size in enumerate(sizes)
    )
    return tuple(int.from_bytes(digest, "little") >> 1 for digest in digests)


def _normal_cdf(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))
