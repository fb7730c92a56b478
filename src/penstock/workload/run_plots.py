"""The page of one or more runs: what was offered and what became of it over time, and distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.html import COLORS, OFFERED_COLOR, Section, new_figure, write_page
from penstock.workload.measure import summarise
from penstock.workload.records import RequestRecord, Run
from penstock.workload.windows import Window, windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_VECTOR_POINTS = 5000  # more become one picture, or the page would weigh hundreds of bytes for each


def write_html(
    path: Path, runs: Sequence[Run], tables: Sequence[RenderableType], objective: Objective = NO_OBJECTIVE
) -> None:
    """Write the page. Raises ReplayError without matplotlib, or if the file cannot be written."""
    title = " against ".join(dict.fromkeys(run.name for run in runs))
    write_page(path, title, [Section(tables=tables, figures=run_figures(runs, objective))])


def run_figures(runs: Sequence[Run], objective: Objective = NO_OBJECTIVE) -> tuple[Figure, ...]:
    """Timeline and distributions, every run in a color of its own."""
    return _timeline(runs, objective), _distributions(runs)


def goodput_figure(titles: Sequence[str], groups: Sequence[Sequence[Run]], objectives: Sequence[Objective]) -> Figure:
    """A panel of bars per group: answered requests per second, and in front those that kept their limits."""
    figure = new_figure(height_in=3.2)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, title, runs, objective in zip(panels, titles, groups, objectives, strict=True):
        names = [run.name for run in runs]
        summaries = [summarise(run, objective) for run in runs]
        answered = [one.requests_per_s for one in summaries]
        axes.bar(names, answered, color="#d1d5db", label="answered")
        bars = axes.bar(names, [one.goodput_per_s for one in summaries], color=COLORS[0], label="within limits")
        axes.bar_label(bars, [f"{one.goodput_per_s:.1f}" for one in summaries], padding=2)
        axes.set_ylim(0, 1.3 * max(answered))
        axes.set_title(title)
        axes.set_ylabel("requests/s")
        axes.legend(loc="upper right", ncols=2, frameon=False)
    return figure


def _timeline(runs: Sequence[Run], objective: Objective) -> Figure:
    """Offered load, requests on their way, TTFT of each request, and limits kept; one below the other in time."""
    figure = new_figure(height_in=7.5)
    load, running, first, kept = figure.subplots(4, 1, sharex=True)
    is_one_load = len({_load_of(run) for run in runs}) == 1
    for place, run in enumerate(runs):
        color, parts = COLORS[place % len(COLORS)], windows(run, objective, n_windows=40)
        _steps(running, parts, lambda window: window.running, color, run.name)
        _steps(kept, parts, lambda window: window.kept_frac, color, run.name)
        if place == 0 or not is_one_load:
            load_color = OFFERED_COLOR if is_one_load else color
            _steps(load, parts, lambda window: window.offered_per_s, load_color, run.name)
        points = [(record.scheduled_s, record.ttft_s) for record in run.records if record.ttft_s is not None]
        if points:
            is_raster = len(points) > MOST_VECTOR_POINTS
            first.plot(*zip(*points, strict=True), ".", color=color, markersize=3, alpha=0.6, rasterized=is_raster)
    for axes, label in ((load, "offered, 1/s"), (running, "running"), (first, "TTFT, s"), (kept, "limits kept")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    if any(record.ttft_s for run in runs for record in run.records):
        first.set_yscale("log")
    kept.set_ylim(-0.05, 1.05)
    kept.set_xlabel("time in the replay, s")
    running.legend(loc="upper right")
    return figure


def _load_of(run: Run) -> tuple[float, ...]:
    return tuple(record.scheduled_s for record in run.records)


def _steps(
    axes: Axes, parts: Sequence[Window], value: Callable[[Window], float | None], color: str, label: str
) -> None:
    values = [np.nan if (one := value(window)) is None else one for window in parts]
    edges_s = [*(window.start_s for window in parts), *(window.stop_s for window in parts[-1:])]
    axes.plot(edges_s, [*values, *values[-1:]], color=color, label=label, drawstyle="steps-post")


def _distributions(runs: Sequence[Run]) -> Figure:
    """Cumulative shares of TTFT, TPOT, ITL and E2E."""
    figure = new_figure(height_in=3.6)
    measures: tuple[tuple[str, Callable[[RequestRecord], Any]], ...] = (
        ("TTFT, s", lambda record: [record.ttft_s]),
        ("TPOT, s", lambda record: [record.tpot_s]),
        ("ITL, s", lambda record: np.diff(record.token_s) if record.has_gaps else ()),
        ("E2E, s", lambda record: [record.e2e_s]),
    )
    for axes, (label, measure) in zip(figure.subplots(1, len(measures), sharey=True), measures, strict=True):
        for place, run in enumerate(runs):
            answered = [record for record in run.records if record.is_ok]
            values = np.sort([value for record in answered for value in measure(record) if value is not None])
            if values.size:
                at = np.linspace(0, 1, min(values.size, 500))
                axes.plot(np.quantile(values, at), at, color=COLORS[place % len(COLORS)], label=run.name)
                axes.set_xscale("symlog", linthresh=1e-3)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=OFFERED_COLOR)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of them")
    return figure
