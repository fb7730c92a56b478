"""Generator parameters from a trace, and how far the generator then is from it.

Each category of requests becomes a service. Arrivals (of a session: its start): the shape of the Gamma gaps is
estimated in each window, for a rate that drifts would pass for burstiness; where the windows' rates differ more than
such gaps explain, they are sorted by their rate into the regimes quiet, normal and burst. Traces of some days give a
rhythm of the day, of some weeks one of the week. Lengths: quantile tables, and the mean answer by prompt. Sessions:
fit_sessions.py. How good it is: Kolmogorov-Smirnov distances, here of gaps and lengths to what was fitted, and of a
generated trace to the given one (fit_check.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.workload.arrivals import DAY_S, HOUR_S, WEEK_S, Profile, Regime, steady
from penstock.workload.burstgpt import GeneratorSpec, ServiceSpec, failure_chances
from penstock.workload.columns import Columns, columns_of
from penstock.workload.fit_sessions import fit_sessions
from penstock.workload.lengths import SPREAD_INPUTS, Counts, Floats, LengthModel, QuantileTable
from penstock.workload.trace import Trace, TraceError

MIN_GAPS = 20  # per window, for a shape
CUTS = (0.5, 2.0)  # a window's rate relative to the mean: below is quiet, above is burst
EXPLAINED = 2.0  # times the variance that a steady rate would have: more is a rate that changes
N_DRAWN = 100_000
MOST_SERVICES = 6  # categories that become a service of their own; the others are one together
MIN_FAILED = 20
FAILED_POWERS = (0.0, 1.0, 2.0, 3.0)
DAILY_FROM_S = 3 * DAY_S
WEEKLY_FROM_S = 2 * WEEK_S
REPEATS = 0.5  # correlation of even and odd days from which they have a rhythm


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFit:
    start_s: float
    requests: int
    rate_per_s: float
    alpha: float | None  # None: too few gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """ks_*: largest distance between two distribution functions, 0 to 1; gaps are divided by their window's mean.

    windows, alpha and together_frac are of all requests; together_frac: share of gaps that are 0. A trace with a coarse
    clock has many; its shapes say more about the clock than about the traffic.
    """

    spec: GeneratorSpec
    requests: int
    failed: int
    alpha: float
    together_frac: float
    window_s: float
    windows: tuple[WindowFit, ...]
    ks_gaps_gamma: float
    ks_gaps_poisson: float
    ks_inputs: float
    ks_outputs: float
    ks_inputs_chatgpt: float
    ks_outputs_chatgpt: float


def gamma_shape(gaps: Floats) -> float:
    """Shape of Gamma gaps: the closed-form estimator of Ye and Chen (2017), close to maximum likelihood.

    A gap of 0 has no logarithm; with any, the method of moments is used, 1 / CV^2.
    """
    if gaps.size < 2 or gaps.max() <= 0:
        raise TraceError(f"{gaps.size} gaps, the largest {gaps.max(initial=0):g} s: too few to estimate a shape from")
    if gaps.min() > 0:
        logs = np.log(gaps)
        spread = float((gaps * logs).mean() - gaps.mean() * logs.mean())
        return float(gaps.mean()) / spread if spread > 0 else math.inf
    return float((gaps.mean() / gaps.std()) ** 2)


def ks_distance(a: Floats, b: Floats) -> float:
    """Two-sample Kolmogorov-Smirnov distance."""
    both = np.concatenate([a, b])
    ranks = [np.searchsorted(np.sort(sample), both, side="right") / sample.size for sample in (a, b)]
    return float(np.abs(ranks[0] - ranks[1]).max())


def fit(trace: Trace, chatgpt: LengthModel, window_s: float | None = None, *, seed: int = 0) -> Fit:
    """Fit a trace; window_s: None takes 20 minutes or a twentieth of the trace, whichever is less."""
    calls = columns_of(trace)
    if not (calls.outputs > 0).any():
        raise TraceError("the trace has no request with output: there are no lengths to fit")
    duration_s = float(calls.arrivals_s[-1] - calls.arrivals_s[0])
    if calls.arrivals_s.size < MIN_GAPS + 1 or duration_s <= 0:
        raise TraceError(
            f"{calls.arrivals_s.size} requests within {duration_s:g} s: give a trace of {MIN_GAPS + 1} or more"
        )
    if window_s is not None and not 0 < window_s < math.inf:
        raise TraceError(f"windows of {window_s} s: give a positive length")
    window_s = window_s or min(1200.0, duration_s / 20)
    gaps = np.diff(calls.arrivals_s)
    windows = _windows(calls.arrivals_s - calls.arrivals_s[0], window_s, duration_s)
    scaled = _scaled(windows) if any(part.size > 1 for part in windows) else gaps
    alpha = gamma_shape(scaled)
    services = _services(calls, trace.header.name or "fitted", window_s, duration_s)
    spec = GeneratorSpec(
        name=f"like {trace.header.name or 'fitted'}", duration_s=duration_s, services=services, is_path_exact=True
    )
    rng = np.random.default_rng(seed)
    lengths = _lengths(calls.inputs, calls.outputs)
    drawn, poisson = lengths.draw_inputs(rng, N_DRAWN), rng.exponential(1.0, N_DRAWN)
    inputs, outputs = calls.inputs.astype(float), calls.outputs[calls.outputs > 0].astype(float)
    of_chatgpt = chatgpt.draw_inputs(rng, N_DRAWN)
    shape = min(alpha, 1e3)
    return Fit(
        spec=spec,
        requests=calls.arrivals_s.size,
        failed=int((calls.outputs == 0).sum()),
        alpha=alpha,
        together_frac=float((gaps == 0).mean()),
        window_s=window_s,
        windows=_window_fits(windows, window_s, duration_s),
        ks_gaps_gamma=ks_distance(scaled, rng.gamma(shape, 1 / shape, N_DRAWN)),
        ks_gaps_poisson=ks_distance(scaled, poisson),
        ks_inputs=ks_distance(inputs, np.rint(drawn)),
        ks_outputs=ks_distance(outputs, np.rint(lengths.draw_outputs(rng, drawn))),
        ks_inputs_chatgpt=ks_distance(inputs, np.rint(of_chatgpt)),
        ks_outputs_chatgpt=ks_distance(outputs, np.rint(chatgpt.draw_outputs(rng, of_chatgpt))),
    )


def _services(calls: Columns, name: str, window_s: float, duration_s: float) -> tuple[ServiceSpec, ...]:
    """One for each category, the most frequent first; without categories, one of the trace's name."""
    counts = np.bincount(calls.categories)
    order = np.argsort(-counts, kind="stable")
    groups = [np.flatnonzero(calls.categories == category) for category in order[:MOST_SERVICES]]
    names = [calls.category_names[category] for category in order[:MOST_SERVICES]]
    rest = np.flatnonzero(np.isin(calls.categories, order[MOST_SERVICES:]))
    if rest.size:
        groups, names = [*groups, rest], [*names, "other categories"]
    start_s = float(calls.arrivals_s[0])
    return tuple(
        _service(calls.of(places), category, category or name, window_s, duration_s, start_s)
        for places, category in zip(groups, names, strict=True)
        if (calls.outputs[places] > 0).any()
    )


def _service(
    calls: Columns, category: str, name: str, window_s: float, duration_s: float, start_s: float
) -> ServiceSpec:
    law = fit_sessions(calls)
    firsts = calls.of(np.flatnonzero((calls.turns == 0) | (calls.sessions < 0))) if law else calls
    times_s = firsts.arrivals_s - start_s
    profile = _profile(times_s, start_s, duration_s)
    windows = _windows(times_s, window_s, duration_s)
    failed = calls.outputs == 0
    return ServiceSpec(
        name=name,
        rate_per_s=calls.arrivals_s.size / duration_s,
        lengths=_lengths(firsts.inputs, firsts.outputs),
        regimes=_regimes(_window_fits(windows, window_s, duration_s), _shape_of(windows), window_s, profile),
        profile=profile,
        sessions=law,
        category=category,
        n_clients=max(1, np.unique(calls.clients).size),
        failed_frac=float(failed.mean()),
        failed_power=_failed_power(calls.arrivals_s, failed),
    )


def _failed_power(times_s: Floats, failed: Counts) -> float:
    """How failures follow load: the likeliest of a few powers, 2 where there are too few to tell."""
    if failed.sum() < MIN_FAILED:
        return 2.0

    def log_likelihood(power: float) -> float:
        chances = np.clip(failure_chances(times_s, float(failed.mean()), power), 1e-9, 1 - 1e-9)
        return float(np.log(np.where(failed, chances, 1 - chances)).sum())

    return max(FAILED_POWERS, key=log_likelihood)


def _profile(times_s: Floats, start_s: float, duration_s: float) -> Profile:
    """Relative rates by hour and weekday, of traces that are long enough to tell."""
    if duration_s < DAILY_FROM_S:
        return Profile()
    daily = _rhythm(times_s + start_s, start_s, duration_s, HOUR_S, DAY_S)
    weekly = _rhythm(times_s + start_s, start_s, duration_s, DAY_S, WEEK_S) if duration_s >= WEEKLY_FROM_S else ()
    return Profile(daily=daily, weekly=weekly, start_s=start_s % WEEK_S)


def _rhythm(times_s: Floats, start_s: float, duration_s: float, part_s: float, period_s: float) -> tuple[float, ...]:
    """Calls in each part of a period, over how often it was seen; nothing where periods do not repeat each other."""
    n_parts = round(period_s / part_s)
    seen_s = np.arange(start_s, start_s + duration_s, part_s)

    def rates(is_mine: Callable[[Floats], Any]) -> Floats:
        calls, parts = (
            np.bincount((one[is_mine(one)] % period_s // part_s).astype(int), minlength=n_parts)
            for one in (times_s, seen_s)
        )
        return np.asarray(calls / np.maximum(parts, 1), dtype=float)

    even, odd = rates(lambda at_s: at_s // period_s % 2 == 0), rates(lambda at_s: at_s // period_s % 2 == 1)
    if not even.std() or not odd.std() or np.corrcoef(even, odd)[0, 1] < REPEATS:
        return ()
    found = rates(lambda at_s: at_s >= 0)
    return tuple(np.maximum(found, found.mean() * 1e-3).tolist())


def _windows(times_s: Floats, window_s: float, duration_s: float) -> list[Floats]:
    """The gaps that begin in each window."""
    n_windows = max(1, math.ceil(duration_s / window_s - 1e-9))
    gaps, places = np.diff(times_s), np.minimum(times_s[:-1] // window_s, n_windows - 1)
    cuts = np.searchsorted(places, np.arange(1, n_windows))
    return np.split(gaps, cuts)


def _scaled(windows: list[Floats]) -> Floats:
    """Gaps over the mean of their window; windows whose gaps are all 0 say nothing of a shape."""
    return np.concatenate([part / part.mean() for part in windows if part.size > 1 and part.mean() > 0] or [np.ones(1)])


def _shape_of(windows: list[Floats]) -> float:
    scaled = _scaled(windows)
    return min(gamma_shape(scaled), 1e3) if scaled.size >= MIN_GAPS else 1.0


def _window_fits(windows: list[Floats], window_s: float, duration_s: float) -> tuple[WindowFit, ...]:
    return tuple(
        _window_fit(place * window_s, part, min(window_s, duration_s - place * window_s))
        for place, part in enumerate(windows)
    )


def _window_fit(start_s: float, gaps: Floats, length_s: float) -> WindowFit:
    can_fit = gaps.size >= MIN_GAPS and gaps.max() > 0
    alpha = gamma_shape(gaps) if can_fit else None
    return WindowFit(start_s=start_s, requests=gaps.size, rate_per_s=gaps.size / length_s, alpha=alpha)


def _lengths(inputs: Counts, outputs: Counts) -> LengthModel:
    """Tables of both, the mean answer by prompt, and how an answer's spread depends on its prompt."""
    answered = outputs > 0
    edges = np.unique(np.quantile(inputs[answered], np.linspace(0, 1, 13)))
    points, spreads = {}, []
    for low, high in itertools.pairwise(edges):
        inside = answered & (inputs >= low) & (inputs <= high)
        at = float(inputs[inside].mean())
        points[at] = float(outputs[inside].mean())
        spreads.append((at, float(np.log(outputs[inside]).std())))
    whole = float(np.log(outputs[answered]).std())
    short, long = _spreads(np.array(spreads).reshape(-1, 2), whole) if whole > 0 else (1.0, 1.0)
    tables = QuantileTable.of(inputs), QuantileTable.of(outputs)
    return LengthModel(*tables, tuple(points.items()), spread_short=short, spread_long=long)


def _spreads(by_input: Floats, whole: float) -> tuple[float, float]:
    """At the short and the long prompts of a length model, relative to the spread of all answers: least squares."""
    if by_input.size == 0:
        return 1.0, 1.0
    inputs, relative = by_input[:, 0], by_input[:, 1] / whole
    short, long = np.log(SPREAD_INPUTS)
    share = np.clip((np.log(inputs) - short) / (long - short), 0, 1)
    if share.max() - share.min() < 0.2:  # all of one length: nothing to tell the two apart by
        return _bounded(relative.mean()), _bounded(relative.mean())
    found = np.linalg.lstsq(np.stack([1 - share, share], axis=1), relative, rcond=None)[0]
    return _bounded(found[0]), _bounded(found[1])


def _bounded(spread: float) -> float:
    return float(np.clip(spread, 0.05, 2.0))


def _regimes(fits: tuple[WindowFit, ...], alpha: float, window_s: float, profile: Profile) -> tuple[Regime, ...]:
    """The chain of quiet, normal and burst windows as it was seen; the rhythm of the day is taken off first."""
    middles_s = np.array([window.start_s + window_s / 2 for window in fits])
    rates = np.array([window.rate_per_s for window in fits]) / profile.factors(middles_s)
    kinds = _kinds(rates / rates.mean(), np.array([window.requests for window in fits]), alpha)
    seen = sorted(set(kinds.tolist()))
    if len(seen) == 1:
        return steady(alpha)
    names = ("quiet", "normal", "burst")
    found = []
    for kind in seen:
        mine = [window for window, its in zip(fits, kinds, strict=True) if its == kind]
        next_kinds = [to for its, to in itertools.pairwise(kinds) if its == kind and to != kind]
        others = next_kinds or [other for other in seen if other != kind]
        alphas = [window.alpha for window in mine if window.alpha is not None and window.alpha < 1e3]
        found.append(
            Regime(
                name=names[kind],
                rate_mult=max(float(rates[kinds == kind].mean() / rates.mean()), 1e-3),
                alpha=float(np.median(alphas)) if alphas else alpha,
                mean_dwell_s=len(mine) * window_s / max(1, len(next_kinds)),
                next_frac={names[to]: others.count(to) / len(others) for to in sorted(set(others))},
            )
        )
    return tuple(found)


def _kinds(relative: Floats, requests: Counts, alpha: float) -> Counts:
    """0, 1 or 2 for each window, by its rate over the mean. All 1 where a steady rate explains the differences."""
    expected = 1 / (alpha * max(1.0, float(requests.mean())))  # squared CV of the calls in a window
    if float(relative.var()) <= EXPLAINED * expected:
        return np.ones(relative.size, dtype=np.int64)
    kinds = np.searchsorted(CUTS, relative)
    if len(set(kinds.tolist())) == 1:  # a rate that drifts, without the extremes: thirds of the windows
        kinds = np.searchsorted(np.quantile(relative, (1 / 3, 2 / 3)), relative)
    return np.asarray(kinds, dtype=np.int64)
