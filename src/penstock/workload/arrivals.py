"""Arrival times: Gamma gaps whose rate and burstiness follow a profile of the day and a chain of regimes.

A gap of shape alpha has CV 1/sqrt(alpha): 1 is Poisson, below 1 comes in clusters. The rate changes with the hour, the
weekday and the regime. Gaps of mean 1 are drawn in *operational time*, the integral of the rate, and mapped back: the
expected number of arrivals is that integral, whatever the shapes and however often the regime changes. The first gap
has the law of the rest of a gap that was under way when the trace began. Rates are averages: over a week of the
profile, and over the regimes either in the long run or on the path that was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.workload.lengths import Floats
from penstock.workload.trace import TraceError

HOUR_S, DAY_S, WEEK_S = 3600.0, 86_400.0, 604_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """A stretch of traffic. rate_mult: relative to the other regimes. next_frac: share of each regime as the next."""

    name: str
    rate_mult: float
    alpha: float
    mean_dwell_s: float
    next_frac: dict[str, float]

    def __post_init__(self) -> None:
        for field in ("rate_mult", "alpha", "mean_dwell_s"):
            if not 0 < getattr(self, field) < float("inf"):
                raise TraceError(f"regime {self.name}: {field} is {getattr(self, field)}, give a positive number")


def steady(alpha: float) -> tuple[Regime, ...]:
    """One regime for ever."""
    return (Regime(name="steady", rate_mult=1.0, alpha=alpha, mean_dwell_s=DAY_S, next_frac={"steady": 1.0}),)


def check_regimes(regimes: Sequence[Regime]) -> None:
    names = {regime.name for regime in regimes}
    if not regimes or len(names) != len(regimes):
        raise TraceError("a service needs one or more regimes with different names")
    for regime in regimes:
        if not set(regime.next_frac) <= names or abs(sum(regime.next_frac.values()) - 1) > 1e-6:
            raise TraceError(
                f"regime {regime.name}: next_frac is {regime.next_frac}; give shares of {sorted(names)}, adding up to 1"
            )


def time_shares(regimes: Sequence[Regime]) -> Floats:
    """Share of time that the chain spends in each regime in the long run."""
    moves = np.array([[regime.next_frac.get(to.name, 0.0) for to in regimes] for regime in regimes])
    n = len(regimes)
    balance = np.vstack([moves.T - np.eye(n), np.ones(n)])
    visits = np.linalg.lstsq(balance, np.append(np.zeros(n), 1.0), rcond=None)[0]
    shares = visits * [regime.mean_dwell_s for regime in regimes]
    return np.asarray(shares / shares.sum(), dtype=float)


@dataclass(frozen=True, slots=True)
class Segments:
    """Stretches of constant rate: starts and stops of each in seconds, its rate, and the shape of its gaps."""

    edges_s: Floats  # one more than stretches
    rates_per_s: Floats
    alphas: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Rhythm of the week, as relative rates. start_s: where in the week (Monday 0:00 is 0) a trace begins."""

    daily: tuple[float, ...] = ()
    weekly: tuple[float, ...] = ()
    start_s: float = 0.0

    def __post_init__(self) -> None:
        for name, size in (("daily", 24), ("weekly", 7)):
            values = getattr(self, name)
            if values and (len(values) != size or min(values) <= 0):
                raise TraceError(f"{name} has {len(values)} factors: give {size} positive ones, or none")

    def edges_s(self, duration_s: float) -> Floats:
        if not self.daily and not self.weekly:
            return np.array([0.0, duration_s])
        first_s = HOUR_S - self.start_s % HOUR_S
        return np.concatenate([[0.0, duration_s], np.arange(first_s, duration_s, HOUR_S)])

    def factors(self, times_s: Floats) -> Floats:
        """Rate at these times, relative to the mean over a week."""
        in_week_s = (times_s + self.start_s + 1e-6) % WEEK_S  # an edge belongs to the hour that it begins
        factors = np.ones(times_s.size)
        if self.daily:
            factors *= (np.array(self.daily) / np.mean(self.daily))[(in_week_s % DAY_S // HOUR_S).astype(int)]
        if self.weekly:
            factors *= (np.array(self.weekly) / np.mean(self.weekly))[(in_week_s // DAY_S).astype(int)]
        return factors


def draw_segments(
    rng: np.random.Generator,
    regimes: Sequence[Regime],
    rate_per_s: float,
    duration_s: float,
    profile: Profile,
    *,
    is_path_exact: bool = False,
) -> Segments:
    """A path of the regime chain, begun in its steady state, cut where the profile changes.

    is_path_exact: divide by the mean of this path rather than of the chain; for traces too short to average out.
    """
    shares = time_shares(regimes)
    mults = np.array([regime.rate_mult for regime in regimes]) / (shares @ [regime.rate_mult for regime in regimes])
    index = {regime.name: place for place, regime in enumerate(regimes)}
    now_s, switches_s, path = 0.0, [0.0], []
    place = int(rng.choice(len(regimes), p=shares))
    while now_s < duration_s:
        regime = regimes[place]
        path.append(place)
        now_s = now_s + rng.exponential(regime.mean_dwell_s) if len(regimes) > 1 else duration_s
        switches_s.append(min(now_s, duration_s))
        place = index[str(rng.choice(list(regime.next_frac), p=list(regime.next_frac.values())))]
    edges_s = np.unique(np.concatenate([switches_s, profile.edges_s(duration_s)]))
    starts_s = edges_s[:-1]
    places = np.array(path)[np.searchsorted(switches_s, starts_s, side="right") - 1]
    alphas = np.array([regime.alpha for regime in regimes])[places]
    path_mults = mults[places]
    if is_path_exact:
        path_mults = path_mults / np.average(path_mults, weights=np.diff(edges_s))
    return Segments(edges_s, rate_per_s * path_mults * profile.factors(starts_s), alphas)


def draw_arrivals(rng: np.random.Generator, segments: Segments) -> Floats:
    """Arrival times within the segments."""
    masses = np.diff(segments.edges_s) * segments.rates_per_s
    edges = np.concatenate([[0.0], np.cumsum(masses)])  # in operational time: arrivals expected so far
    alpha = segments.alphas[0]
    now = float(rng.random() * rng.gamma(alpha + 1) / alpha)  # rest of a gap that was under way
    parts: list[Floats] = []
    for stop, alpha in zip(edges[1:], segments.alphas, strict=True):
        while now < stop:
            gaps = rng.gamma(alpha, 1 / alpha, int(stop - now) + 16)
            times = np.concatenate([[now], now + np.cumsum(gaps)])
            inside = times[times < stop]
            parts.append(inside)
            # the gap that crosses the edge keeps its draw: it ends in a later segment, at that one's rate
            now = float(times[inside.size]) if inside.size < times.size else float(times[-1] + rng.gamma(alpha) / alpha)
    operational = np.concatenate(parts) if parts else np.zeros(0)
    return np.interp(operational, edges, segments.edges_s)
