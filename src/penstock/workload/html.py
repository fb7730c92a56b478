"""One self-contained HTML page of one or more runs: figures, timeline and distributions. Needs matplotlib."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, RenderableType

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.records import ReplayError, RequestRecord, Run
from penstock.workload.windows import Window, windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1f2937 }}
pre {{ background: #f6f8fa; padding: 1rem; overflow-x: auto; font: 12px/1.25 ui-monospace, Menlo, monospace }}
svg {{ width: 100%; height: auto }} h1 {{ font-size: 1.4rem }}
</style></head><body><h1>{title}</h1>
<pre>{tables}</pre>
{plots}
</body></html>
"""


def write_html(
    path: Path, runs: Sequence[Run], tables: Sequence[RenderableType], objective: Objective = NO_OBJECTIVE
) -> None:
    """Write the page. `tables` are shown as they look on a terminal. Raises ReplayError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReplayError("plots need matplotlib: pip install 'penstock[report]', or leave out --html") from error
    title = " against ".join(dict.fromkeys(run.name for run in runs))
    figures = (_timeline(Figure(figsize=(11, 7.5), layout="constrained"), runs, objective),
               _distributions(Figure(figsize=(11, 3.6), layout="constrained"), runs))  # fmt: skip
    plots = "\n".join(map(_svg, figures))
    page = PAGE.format(title=html.escape(title), tables=html.escape(_text(tables)), plots=plots)
    path.write_text(page, encoding="utf-8")


def _text(tables: Sequence[RenderableType]) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    for table in tables:
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _svg(figure: Figure) -> str:
    """The figure as an SVG element; without the file's preamble it can stand in a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _timeline(figure: Figure, runs: Sequence[Run], objective: Objective) -> Figure:
    """Offered load, requests on their way, TTFT of each request, and limits kept; one below the other in time."""
    load, running, first, kept = figure.subplots(4, 1, sharex=True)
    for place, run in enumerate(runs):
        color, parts = COLORS[place % len(COLORS)], windows(run, objective, n_windows=40)
        _steps(running, parts, lambda window: window.running, color, run.name)
        _steps(kept, parts, lambda window: window.kept_frac, color, run.name)
        if place == 0:
            _steps(load, parts, lambda window: window.offered_per_s, "#6b7280", "offered")
        points = [(record.scheduled_s, record.ttft_s) for record in run.records if record.ttft_s is not None]
        if points:
            first.plot(*zip(*points, strict=True), ".", color=color, markersize=3, alpha=0.6)
    for axes, label in ((load, "offered, 1/s"), (running, "running"), (first, "TTFT, s"), (kept, "limits kept")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    if any(record.ttft_s for run in runs for record in run.records):
        first.set_yscale("log")
    kept.set_ylim(-0.05, 1.05)
    kept.set_xlabel("time in the replay, s")
    running.legend(loc="upper right")
    return figure


def _steps(
    axes: Axes, parts: Sequence[Window], value: Callable[[Window], float | None], color: str, label: str
) -> None:
    values = [np.nan if (one := value(window)) is None else one for window in parts]
    axes.plot([window.start_s for window in parts], values, color=color, label=label, drawstyle="steps-post")


def _distributions(figure: Figure, runs: Sequence[Run]) -> Figure:
    """Cumulative shares of TTFT, ITL and E2E."""
    measures: tuple[tuple[str, Callable[[RequestRecord], Any]], ...] = (
        ("TTFT, s", lambda record: [record.ttft_s]),
        ("ITL, s", lambda record: np.diff(record.token_s)),
        ("E2E, s", lambda record: [record.e2e_s]),
    )
    for axes, (label, measure) in zip(figure.subplots(1, 3, sharey=True), measures, strict=True):
        for place, run in enumerate(runs):
            answered = [record for record in run.records if record.is_ok]
            values = np.sort([value for record in answered for value in measure(record) if value is not None])
            if values.size:
                at = np.linspace(0, 1, min(values.size, 500))
                axes.plot(np.quantile(values, at), at, color=COLORS[place % len(COLORS)], label=run.name)
                axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of them")
    return figure
