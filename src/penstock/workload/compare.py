"""Two runs side by side, with an interval around each difference.

The interval comes from the bootstrap: a thousand times, requests are drawn again with replacement and the figure is
computed anew. Two runs of one trace are compared request by request: the same requests are drawn from both, so that
what a long prompt costs in both does not widen the interval. It says how much a figure depends on *which requests* the
trace happens to hold. It does not cover a server that behaves differently from one replay to the next (replay again),
and requests that queue behind each other are not independent, so it is rather too narrow than too wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.lengths import Floats
from penstock.workload.measure import limits
from penstock.workload.records import RequestRecord, Run

N_DRAWS = 1000
INTERVAL = (2.5, 97.5)
MAX_BATCH_VALUES = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure of two runs. low, high: 95 % interval of b - a; None where there was nothing to draw from."""

    name: str
    unit: str
    is_less_better: bool
    a: float | None
    b: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """better or worse where the interval leaves out 0, else same."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "same"
        return "better" if (self.high < 0) == self.is_less_better else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    name_a: str
    name_b: str
    is_paired: bool
    differences: tuple[Difference, ...]


# draws x requests, NaN where a request has no value (for rates also x counted, sent, ended) -> one figure per draw
Figure = Callable[[Floats], Floats]


def _percentile(percent: float) -> Figure:
    def figure(draws: Floats) -> Floats:
        if draws.size == 0:
            return np.zeros(0)
        over = np.nanpercentile if np.isnan(draws).any() else np.percentile  # the former walks row by row
        return np.asarray(over(draws, percent, axis=1), dtype=float)

    return figure


def _mean(draws: Floats) -> Floats:
    means: Floats = draws.mean(axis=1)
    return means


_LATENCIES: tuple[tuple[str, Callable[[RequestRecord], float | None]], ...] = (
    ("TTFT", lambda record: record.ttft_s),
    ("TPOT", lambda record: record.tpot_s),
    ("E2E", lambda record: record.e2e_s),
)


def compare(a: Run, b: Run, objective: Objective = NO_OBJECTIVE, *, seed: int = 0) -> Comparison:
    """Compare two runs. They are paired if they replayed the same requests."""
    is_paired = _shape(a) == _shape(b)

    def differ(name: str, unit: str, value: Callable[[Run], Floats], figure: Figure, less: bool) -> Difference:
        values = (value(a), value(b))
        at = [_once(figure, array) for array in values]
        low, high = _interval(figure, values, is_paired, np.random.default_rng(seed))
        return Difference(name=name, unit=unit, is_less_better=less, a=at[0], b=at[1], low=low, high=high)

    found = [
        differ(f"{name} p{percent}", "ms", _answered_ms(measure), _percentile(percent), True)
        for name, measure in _LATENCIES
        for percent in (50, 90, 99)
    ]
    found.append(differ("attainment", "%", lambda run: 100 * _kept(run, objective), _mean, False))
    found.append(differ("goodput", "requests/s", lambda run: _timed(run, _kept(run, objective)), _rate, False))
    found.append(differ("output", "tokens/s", lambda run: _timed(run, _tokens(run)), _rate, False))
    return Comparison(name_a=a.name, name_b=b.name, is_paired=is_paired, differences=tuple(found))


def _shape(run: Run) -> list[tuple[int, int, str, str | None]]:
    return [(record.input_tokens, record.output_tokens, record.client, record.session) for record in run.records]


def _answered_ms(measure: Callable[[RequestRecord], float | None]) -> Callable[[Run], Floats]:
    def values(run: Run) -> Floats:
        taken_s = (measure(record) if record.is_ok else None for record in run.records)
        return np.array([np.nan if value is None else value * 1e3 for value in taken_s], dtype=float)

    return values


def _kept(run: Run, objective: Objective) -> Floats:
    return np.array([record.keeps(limits(record, objective)) for record in run.records], dtype=float)


def _tokens(run: Run) -> Floats:
    return np.array([record.n_tokens for record in run.records], dtype=float)


def _timed(run: Run, counts: Floats) -> Floats:
    """What is counted of each request, and when it was sent and ended; a run's length is drawn with its requests."""
    times_s = [(record.sent_s, record.end_s) for record in run.records]
    return np.column_stack([counts, np.array(times_s, dtype=float).reshape(-1, 2)])


def _rate(draws: Floats) -> Floats:
    counted, sent_s, ended_s = draws[..., 0], draws[..., 1], draws[..., 2]
    lengths_s = np.nanmax(ended_s, axis=1) - np.nanmin(sent_s, axis=1)
    rates: Floats = np.divide(counted.sum(axis=1), lengths_s, out=np.zeros(lengths_s.size), where=lengths_s > 0)
    return rates


def _once(figure: Figure, values: Floats) -> float | None:
    if values.size == 0 or not _is_usable(values[None])[0]:
        return None
    return float(figure(values[None, :])[0])


def _interval(
    figure: Figure, values: tuple[Floats, Floats], is_paired: bool, rng: np.random.Generator
) -> tuple[float, float] | tuple[None, None]:
    """Of the difference b - a. Every figure of a comparison gets the same draws."""
    a, b = values
    if not _is_usable(a[None])[0] or not _is_usable(b[None])[0]:
        return None, None
    batch = max(1, MAX_BATCH_VALUES // max(a.size, b.size))
    differences: list[Floats] = []
    for start in range(0, N_DRAWS, batch):
        count = min(batch, N_DRAWS - start)
        places_a = rng.integers(0, len(a), (count, len(a)))
        places_b = places_a if is_paired else rng.integers(0, len(b), (count, len(b)))
        drawn_a, drawn_b = a[places_a], b[places_b]
        usable = _is_usable(drawn_a) & _is_usable(drawn_b)
        differences.append(figure(drawn_b[usable]) - figure(drawn_a[usable]))
    joined = np.concatenate(differences)
    if joined.size == 0:
        return None, None
    low, high = np.percentile(joined, INTERVAL)
    return float(low), float(high)


def _is_usable(draws: Floats) -> NDArray[np.bool_]:
    """Which draws hold at least one request with all that is needed; a draw may miss every answer."""
    known: NDArray[np.bool_] = np.isfinite(draws)
    if known.ndim == 3:
        known = np.all(known, axis=2)
    return np.asarray(np.any(known, axis=1), dtype=np.bool_)
