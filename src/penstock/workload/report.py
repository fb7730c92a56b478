"""Figures on the terminal and as one JSON file: of a run, and of two runs side by side."""

from __future__ import annotations

from math import floor, log10
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from penstock.workload.compare import Comparison, Difference
from penstock.workload.measure import NO_LIMITS, Spread, Summary
from penstock.workload.records import ReplayError, Run

LAG_WARNING_S = 0.010
MOST_CLIENTS = 20  # rows of a table
SPREADS = (
    ("ttft", "TTFT, sent to first token"),
    ("tpot", "TPOT, per token after it"),
    ("itl", "ITL, between two events"),
    ("e2e", "E2E, sent to last token"),
    ("queue", "queued, as the server says"),
    ("lag", "client lag, due to sent"),
)


def write_run(path: Path, run: Run, summary: Summary) -> None:
    """Write header, summary and every record; `read_run` takes the records and ignores the summary.

    Raises ReplayError if the file cannot be written.
    """
    document: dict[str, Any] = {"header": run.header, "summary": summary, "records": run.records}
    try:
        path.write_bytes(msgspec.json.encode(document) + b"\n")
    except OSError as error:
        raise ReplayError(f"cannot write {path}: {error.strerror}. Check the path.") from error


def render(run: Run, summary: Summary) -> RenderableType:
    """Everything about one run, for a rich console."""
    parts: list[RenderableType] = [_head(run, summary), _spreads(summary), _rates(summary)]
    if len(summary.clients) > 1:
        parts.append(_clients(summary))
    parts += [Text(f"! {note}", style="yellow") for note in notes(run, summary)]
    return Group(*parts)


def notes(run: Run, summary: Summary) -> list[str]:
    """What a reader must know before believing the figures."""
    found = [] if run.header.is_whole else ["interrupted: the figures are of what had ended"]
    if summary.limits == NO_LIMITS:
        found.append("no request has limits, so goodput and attainment are of all that was answered: give --objective")
    failed = {name: count for name, count in summary.outcomes.items() if name != "ok"}
    if failed:
        listed = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in failed.items())
        found.append(f"{listed}: latencies are of the answered requests only, attainment and goodput are of all")
    if summary.short_answers:
        found.append(
            f"{summary.short_answers} answers are shorter than the trace asked: does the server obey ignore_eos?"
        )
    if summary.lag is not None and summary.lag.p99_s > LAG_WARNING_S:
        found.append(
            f"the client itself was late (p99 {ms(summary.lag.p99_s)} ms): this load is too much for this machine, "
            "latencies include that. Use a slower replay, or a client machine of its own."
        )
    return found


def ms(value_s: float) -> str:
    value_ms = value_s * 1e3
    return f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.1f}" if value_ms >= 10 else f"{value_ms:.2f}"


def _head(run: Run, summary: Summary) -> Text:
    outcomes = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary.outcomes.items())
    label = f" [{run.header.label}]" if run.header.label else ""
    return Text(
        f"{run.header.trace} -> {run.header.model}{label}: {summary.requests} requests in {summary.duration_s:.1f} s "
        f"({outcomes}), pacing {run.header.pacing}",
        style="bold",
    )


def _spreads(summary: Summary) -> Table:
    table = Table("latency, ms", *(("p50", "p90", "p99", "max", "mean")), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, title in SPREADS:
        spread: Spread | None = getattr(summary, name)
        if spread is not None:
            values_s = (spread.p50_s, spread.p90_s, spread.p99_s, spread.max_s, spread.mean_s)
            table.add_row(title, *map(ms, values_s))
    return table


def _rates(summary: Summary) -> Table:
    table = Table("rates", "", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("answered, requests/s", f"{summary.requests_per_s:.2f}")
    table.add_row("output, tokens/s", f"{summary.output_tokens_per_s:.1f}")
    table.add_row("limits", summary.limits)
    table.add_row("goodput, requests/s within all limits", f"{summary.goodput_per_s:.2f}")
    table.add_row("attainment, share of all requests", f"{summary.attainment_frac:.1%}")
    if summary.weighted_attainment_frac != summary.attainment_frac:
        table.add_row("attainment by weight", f"{summary.weighted_attainment_frac:.1%}")
    for title, index in (("limits kept", summary.jain_kept), ("pace", summary.jain_pace)):
        if index is not None:
            table.add_row(f"fairness between clients, {title} (Jain)", f"{index:.3f}")
    if len(summary.clients) > 1:
        kept = [share.kept_frac for share in summary.clients]
        table.add_row("limits kept, worst and best client", f"{min(kept):.1%}, {max(kept):.1%}")
    return table


def _clients(summary: Summary) -> Table:
    table = Table("client", "requests", "limits kept", "ms per token")
    for column in table.columns[1:]:
        column.justify = "right"
    worst_first = sorted(summary.clients, key=lambda share: (share.kept_frac, share.client))
    shown = summary.clients if len(worst_first) <= MOST_CLIENTS else worst_first[:MOST_CLIENTS]
    for share in shown:
        pace = ms(share.mean_pace_s) if share.mean_pace_s is not None else "-"
        table.add_row(share.client or "(none)", str(share.requests), f"{share.kept_frac:.1%}", pace)
    if len(shown) < len(worst_first):
        table.caption = f"the {len(shown)} of {len(worst_first)} clients whose limits are kept least"
    return table


def render_comparison(comparison: Comparison) -> RenderableType:
    """Both runs, the change, and whether it is more than the choice of requests explains."""
    headings = ("", escape(comparison.name_a), escape(comparison.name_b), "change", "95 % interval", "")
    table = Table(*headings, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 characters hold two names of 13
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    for one in comparison.differences:
        color = {"better": "green", "worse": "red"}.get(one.verdict, "dim")
        interval = "-" if one.low is None or one.high is None else _interval(one.low, one.high, one.a)
        cells = (_number(one.a), _number(one.b), _change(one), escape(interval), f"[{color}]{one.verdict}[/]")
        table.add_row(f"{one.name}, {one.unit}", *cells)
    pairing = "request by request" if comparison.is_paired else "as two samples: they did not replay the same requests"
    return Group(table, Text(f"compared {pairing}; the interval is of the difference; same: it holds 0", style="dim"))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _interval(low: float, high: float, of: float | None) -> str:
    """With the decimals that a difference of a figure of this size needs."""
    places = min(max(3 - floor(log10(abs(of))), 0), 9) if of else 3
    return f"[{low:+.{places}f}, {high:+.{places}f}]"


def _change(one: Difference) -> str:
    if not one.a or one.b is None:
        return "-"
    return f"{one.b / one.a - 1:+.1%}" if one.b < 10 * one.a else f"x {one.b / one.a:.0f}"
