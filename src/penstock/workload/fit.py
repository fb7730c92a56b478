"""Generator parameters from a trace, and how far the generator then is from it.

Arrivals: the shape of the Gamma gaps is estimated in each window, for a rate that drifts would pass for burstiness; the
windows are then sorted by their rate into the regimes quiet, normal and burst. Lengths: quantile tables, and the mean
answer by prompt. How good it is: Kolmogorov-Smirnov distances, two-sample against a large draw from the fit.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from penstock.workload.arrivals import Regime, steady
from penstock.workload.burstgpt import GeneratorSpec, ServiceSpec
from penstock.workload.lengths import Counts, Floats, LengthModel, QuantileTable
from penstock.workload.trace import Trace, TraceError

MIN_GAPS = 20  # per window, for a shape
CUTS = (0.5, 2.0)  # a window's rate relative to the mean: below is quiet, above is burst
N_DRAWN = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFit:
    start_s: float
    requests: int
    rate_per_s: float
    alpha: float | None  # None: too few gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """ks_*: largest distance between two distribution functions, 0 to 1; gaps are divided by their window's mean.

    together_frac: share of gaps that are 0. A trace with a coarse clock has many; its shapes say more about the clock
    than about the traffic.
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
    arrivals_s, inputs, outputs = _columns(trace)
    duration_s = float(arrivals_s[-1] - arrivals_s[0])
    if arrivals_s.size < MIN_GAPS + 1 or duration_s <= 0:
        raise TraceError(f"{arrivals_s.size} requests within {duration_s:g} s: give a trace of {MIN_GAPS + 1} or more")
    window_s = window_s or min(1200.0, duration_s / 20)
    parts = _windows(arrivals_s - arrivals_s[0], window_s)
    gaps = np.diff(arrivals_s)
    scaled = np.concatenate([part / part.mean() for part in parts if part.size > 1 and part.mean() > 0] or [gaps])
    alpha = gamma_shape(scaled)
    window_fits = tuple(
        _window_fit(place * window_s, part, min(window_s, duration_s - place * window_s))
        for place, part in enumerate(parts)
    )
    lengths = _lengths(inputs, outputs)
    rate_per_s = gaps.size / duration_s
    service = ServiceSpec(
        name=trace.header.name or "fitted",
        rate_per_s=rate_per_s,
        lengths=lengths,
        regimes=_regimes(window_fits, rate_per_s, min(alpha, 1e3), window_s),
        failed_frac=float((outputs == 0).mean()),
    )
    rng = np.random.default_rng(seed)
    drawn = lengths.draw_inputs(rng, N_DRAWN)
    return Fit(
        spec=GeneratorSpec(name=f"like {service.name}", duration_s=duration_s, services=(service,)),
        requests=arrivals_s.size,
        failed=int((outputs == 0).sum()),
        alpha=alpha,
        together_frac=float((gaps == 0).mean()),
        window_s=window_s,
        windows=window_fits,
        ks_gaps_gamma=ks_distance(scaled, rng.gamma(min(alpha, 1e3), 1 / min(alpha, 1e3), N_DRAWN)),
        ks_gaps_poisson=ks_distance(scaled, rng.exponential(1.0, N_DRAWN)),
        ks_inputs=ks_distance(inputs.astype(float), np.rint(drawn)),
        ks_outputs=ks_distance(outputs[outputs > 0].astype(float), np.rint(lengths.draw_outputs(rng, drawn))),
        ks_inputs_chatgpt=ks_distance(inputs.astype(float), np.rint(chatgpt.draw_inputs(rng, N_DRAWN))),
        ks_outputs_chatgpt=ks_distance(
            outputs[outputs > 0].astype(float),
            np.rint(chatgpt.draw_outputs(rng, chatgpt.draw_inputs(rng, N_DRAWN))),
        ),
    )


def _columns(trace: Trace) -> tuple[Floats, Counts, Counts]:
    """Three numbers per request, so that a trace of millions of rows fits."""
    rows = [(r.arrival_s, r.input_tokens, r.output_tokens) for r in trace]
    table = np.array(rows, dtype=float).reshape(-1, 3)
    if not (table[:, 2] > 0).any():
        raise TraceError("the trace has no request with output: there are no lengths to fit")
    return table[:, 0], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)


def _windows(arrivals_s: Floats, window_s: float) -> list[Floats]:
    """The gaps that begin in each window."""
    n_windows = max(1, math.ceil(arrivals_s[-1] / window_s - 1e-9))
    gaps, places = np.diff(arrivals_s), np.minimum(arrivals_s[:-1] // window_s, n_windows - 1)
    return [gaps[places == place] for place in range(n_windows)]


def _window_fit(start_s: float, gaps: Floats, length_s: float) -> WindowFit:
    can_fit = gaps.size >= MIN_GAPS and gaps.max() > 0
    alpha = gamma_shape(gaps) if can_fit else None
    return WindowFit(start_s=start_s, requests=gaps.size, rate_per_s=gaps.size / length_s, alpha=alpha)


def _lengths(inputs: Counts, outputs: Counts) -> LengthModel:
    answered = outputs > 0
    edges = np.unique(np.quantile(inputs[answered], np.linspace(0, 1, 13)))
    points = []
    for low, high in itertools.pairwise(edges):
        inside = answered & (inputs >= low) & (inputs <= high)
        points.append((float(inputs[inside].mean()), float(outputs[inside].mean())))
    return LengthModel(
        QuantileTable.of(inputs),
        QuantileTable.of(outputs),
        tuple(dict(points).items()),
        spread_short=1.0,
        spread_long=1.0,
    )


def _regimes(fits: tuple[WindowFit, ...], rate_per_s: float, alpha: float, window_s: float) -> tuple[Regime, ...]:
    """The chain of quiet, normal and burst windows as it was seen."""
    kinds = np.searchsorted(CUTS, [window.rate_per_s / rate_per_s for window in fits])
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
        rate = float(np.mean([window.rate_per_s for window in mine])) / rate_per_s
        found.append(
            Regime(
                name=names[kind],
                rate_mult=max(rate, 1e-3),
                alpha=float(np.median(alphas)) if alphas else alpha,
                mean_dwell_s=len(mine) * window_s / max(1, len(next_kinds)),
                next_frac={names[to]: others.count(to) / len(others) for to in sorted(set(others))},
            )
        )
    return tuple(found)
