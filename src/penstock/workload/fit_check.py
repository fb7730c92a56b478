"""A trace beside one that was generated from its fit: figures of both, and how far their distributions are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from penstock.workload.burstgpt import GeneratorSpec, generate
from penstock.workload.columns import Columns, columns_of
from penstock.workload.fit import Fit, ks_distance
from penstock.workload.lengths import Floats
from penstock.workload.trace import Trace

MOST_REQUESTS = 300_000
Values = Callable[[Columns], Floats]
Number = Callable[[Columns], float]
SHORT_WINDOWS = 10  # per window of the fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One figure of the given trace and of the generated one. ks: of the distributions behind it, None where it is a
    single number."""

    name: str
    given: str
    made: str
    ks: float | None = None


def made_like(fitted: Fit, seed: int = 1) -> Trace:
    """A trace from the fit, as long as the given one, or shorter where that would have too many requests."""
    spec: GeneratorSpec = fitted.spec
    most_s = MOST_REQUESTS / spec.rate_per_s
    return generate(replace(spec, duration_s=min(spec.duration_s, most_s)), seed)


def check(given: Trace, made: Trace, window_s: float) -> tuple[Statistic, ...]:
    """Figures of both; distances of gaps, of rates in short windows, of lengths, turns and pauses."""
    a, b = columns_of(given), columns_of(made)
    short_s = window_s / SHORT_WINDOWS

    def rates(calls: Columns) -> Floats:
        return _rates(calls, short_s)

    def cv_of(values: Values) -> Number:
        return lambda calls: float(values(calls).std() / values(calls).mean())

    def distance(name: str, form: str, values: Values) -> Statistic:
        of_a, of_b = values(a), values(b)
        means = ["-" if one.size == 0 else f"mean {one.mean():{form}}" for one in (of_a, of_b)]
        ks = ks_distance(of_a, of_b) if min(of_a.size, of_b.size) else None
        return Statistic(name=name, given=means[0], made=means[1], ks=ks)

    def number(name: str, value: Number) -> Statistic:
        return Statistic(name=name, given=f"{value(a):.3g}", made=f"{value(b):.3g}")

    rows = [
        distance("gap between arrivals, s", ".4g", _gaps_s),
        number("CV of the gaps", cv_of(_gaps_s)),
        distance(f"requests/s in windows of {short_s:.3g} s", ".4g", rates),
        number("CV of these rates", cv_of(rates)),
        distance("input tokens", ".0f", lambda calls: calls.inputs.astype(float)),
        distance("output tokens", ".0f", lambda calls: calls.outputs[calls.outputs > 0].astype(float)),
        number("rank correlation of input and output", _correlation),
        number("failed, share", lambda calls: float((calls.outputs == 0).mean())),
    ]
    if a.has_turns:
        rows.append(distance("turns of a session", ".2f", _turns))
        rows.append(distance("pause before a turn, s", ".4g", lambda calls: calls.pauses_s[calls.pauses_s >= 0]))
    return tuple(rows)


def _gaps_s(calls: Columns) -> Floats:
    return np.diff(calls.arrivals_s)


def _rates(calls: Columns, window_s: float) -> Floats:
    times_s = calls.arrivals_s - calls.arrivals_s[0]
    counts: Floats = np.bincount((times_s // window_s).astype(int)) / window_s
    return counts[:-1] if counts.size > 1 else counts  # the last one is not whole


def _correlation(calls: Columns) -> float:
    """Spearman's; ties have the order of the trace."""
    answered = calls.outputs > 0
    if answered.sum() < 2:
        return 0.0
    inputs, outputs = (np.argsort(np.argsort(one[answered], kind="stable")) for one in (calls.inputs, calls.outputs))
    return float(np.corrcoef(inputs, outputs)[0, 1])


def _turns(calls: Columns) -> Floats:
    counts = np.bincount(calls.sessions[calls.sessions >= 0])
    return counts[counts > 0].astype(float)
