"""Plots of one or more traces, each in a color of its own: rate over time, gaps and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from penstock.workload.html import COLORS, OFFERED_COLOR, new_figure
from penstock.workload.survey import Distribution, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_RATE_BINS = 200
MOST_POINTS = 1000


def trace_figures(found: Sequence[Survey]) -> tuple[Figure, ...]:
    """Rates, and distributions of gaps and lengths."""
    return _rates(found), _distributions(found)


def _rates(found: Sequence[Survey]) -> Figure:
    figure = new_figure(height_in=3.2)
    axes = figure.subplots()
    for place, one in enumerate(found):
        starts_s, per_s = one.rates.per_s(one.last_s, N_RATE_BINS)
        axes.plot(
            [*starts_s, one.last_s],
            [*per_s, per_s[-1]],
            color=COLORS[place % len(COLORS)],
            label=one.header.name,
            drawstyle="steps-post",
            alpha=0.8,
        )
    axes.set_xlabel("time in the trace, s")
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure


def _distributions(found: Sequence[Survey]) -> Figure:
    """Cumulative shares, with the exponential gaps of a Poisson process beside those of each trace."""
    figure = new_figure(height_in=3.6)
    gaps, inputs, outputs = figure.subplots(1, 3, sharey=True)
    for place, one in enumerate(found):
        color = COLORS[place % len(COLORS)]
        if one.gaps_s.total > 0:
            _cumulative(gaps, one.gaps_s, color, one.header.name)
            at_s = np.geomspace(one.gaps_s.mean * 1e-3, one.gaps_s.mean * 10, 200)
            label = "Poisson of that rate" if place == 0 else None
            gaps.plot(at_s, 1 - np.exp(-at_s / one.gaps_s.mean), "--", color=OFFERED_COLOR, linewidth=1, label=label)
        _cumulative(inputs, one.inputs, color, one.header.name)
        _cumulative(outputs, one.outputs, color, one.header.name)
    for axes, label in ((gaps, "gap between arrivals, s"), (inputs, "input tokens"), (outputs, "output tokens")):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.set_xscale("log")
    gaps.set_ylabel("share of them")
    gaps.legend(loc="upper left", fontsize="small")
    return figure


def _cumulative(axes: Axes, values: Distribution, color: str, label: str) -> None:
    at, shares = values.shares()
    picked = np.unique(np.linspace(0, at.size - 1, MOST_POINTS).astype(int))
    picked = picked[at[picked] > 0]  # a logarithm has no place for 0; its share is where the line begins
    axes.plot(at[picked], shares[picked], color=color, label=label, drawstyle="steps-post")
