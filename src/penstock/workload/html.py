"""One self-contained HTML page: headings, tables as a terminal shows them, and figures. Figures need matplotlib."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from penstock.workload.records import ReplayError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2")
OFFERED_COLOR = "#6b7280"
WIDTH_IN = 11.0
RASTER_DPI = 150
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1f2937 }}
pre {{ background: #f6f8fa; padding: 1rem; overflow-x: auto; font: 12px/1.25 ui-monospace, Menlo, monospace }}
svg {{ width: 100%; height: auto }} h1 {{ font-size: 1.4rem }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
</style></head><body><h1>{title}</h1>
{sections}
</body></html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page. heading: empty for none."""

    heading: str = ""
    tables: Sequence[RenderableType] = ()
    figures: Sequence[Figure] = ()


def check_can_plot() -> None:
    """Raises ReplayError without matplotlib: before a long run, rather than behind it."""
    new_figure(height_in=1.0)


def new_figure(*, height_in: float) -> Figure:
    """An empty figure as wide as a page. Raises ReplayError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReplayError("plots need matplotlib: pip install 'penstock[report]', or leave out --html") from error
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Raises ReplayError if the file cannot be written."""
    page = PAGE.format(title=html.escape(title), sections="\n".join(map(_section, sections)))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReplayError(f"cannot write the page {path}: {error.strerror}. Check the path.") from error


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>"] if section.heading else []
    if section.tables:
        parts.append(f"<pre>{html.escape(_text(section.tables))}</pre>")
    return "\n".join([*parts, *map(_svg, section.figures)])


def _text(tables: Sequence[RenderableType]) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    for table in tables:
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _svg(figure: Figure) -> str:
    """The figure as an SVG element; without the file's preamble it can stand in a page."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "penstock"}):  # the same figure has the same bytes
        figure.savefig(file, format="svg", dpi=RASTER_DPI, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
