"""`penstock trace {show,convert,generate,fit}`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.workload.commands import (
    HtmlPath,
    ObjectiveText,
    check_outputs,
    load_trace,
    one_line_errors,
    parse_objective,
)
from penstock.workload.kinds import FORMATS, BurstsKeep, Traffic

if TYPE_CHECKING:
    from penstock.workload.burstgpt import GeneratorSpec
    from penstock.workload.survey import Survey
    from penstock.workload.trace import Trace, TraceRequest

SHOWN_EVERY = 10_000  # requests between two looks at the terminal
trace_app = typer.Typer(help="Look at, convert, generate and fit request traces.", no_args_is_help=True)

TracePath = Annotated[str, typer.Argument(help="A trace file of any known format, or a kind of traffic to make.")]
FormatName = Annotated[
    str | None, typer.Option("--format", help=f"Format of the file: {', '.join(FORMATS)}; else by its first line.")
]
OutPath = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Seed = Annotated[int, typer.Option(help="The same seed makes the same trace.")]


def _open(name: str, format_name: str | None, seed: int = 0) -> Trace:
    from penstock.workload.readers import open_trace

    return open_trace(Path(name), format_name) if format_name else load_trace(name, seed)


@trace_app.command("show")
def trace_show(
    traces: Annotated[
        list[str], typer.Argument(help="Trace files of any known format, or kinds of traffic; several side by side.")
    ],
    format_name: FormatName = None,
    seed: Seed = 0,
    html: HtmlPath = None,
) -> None:
    """Say what a trace holds: rate, burstiness, lengths, sessions, and how much of its prompts is shared."""
    with one_line_errors():
        check_outputs(None, html)
        _show([survey_with_count(_open(name, format_name, seed)) for name in traces], html)


def _show(found: list[Survey], html: Path | None) -> None:
    from rich.console import Console

    from penstock.workload.html import Section, write_page
    from penstock.workload.trace_plots import trace_figures
    from penstock.workload.trace_tables import trace_table

    console = Console()
    tables = [trace_table(one) for one in found]
    for table in tables:
        console.print(table)
    if html is not None:
        title = " and ".join(one.header.name for one in found)
        write_page(html, title, [Section(tables=tables, figures=trace_figures(found))])
        console.print(f"written: {html}", highlight=False)


def survey_with_count(trace: Trace) -> Survey:
    """Survey a trace while a line on the terminal says how much was read."""
    from penstock.workload.survey import survey

    with counted(trace) as rows:
        return survey(rows)


@contextmanager
def counted(trace: Trace) -> Iterator[Trace]:
    """The same trace; how many of its requests were read stands on the terminal, if there is one."""
    from rich.console import Console
    from rich.status import Status

    from penstock.workload.trace import Trace

    console = Console(stderr=True)
    status = Status("reading", console=console)

    def source() -> Iterator[TraceRequest]:
        for number, request in enumerate(trace, start=1):
            if number % SHOWN_EVERY == 0:
                status.update(f"{number:,} requests, second {request.arrival_s:,.0f}")
            yield request

    if not console.is_terminal:
        yield trace
        return
    with status:
        yield Trace(trace.header, source, trace.tally)


@trace_app.command("convert")
def trace_convert(
    traces: Annotated[
        list[str], typer.Argument(help="Trace files, or kinds of traffic to make; several are mixed by time.")
    ],
    out: OutPath,
    format_name: FormatName = None,
    keep_: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="CONDITION", help="As category=api or input_tokens<=2048; repeat it for more."),
    ] = None,
    rate_factor: Annotated[float | None, typer.Option(help="Divide all times by this; pauses stay.")] = None,
    start_s: Annotated[float, typer.Option(help="Leave out what arrives before.")] = 0.0,
    stop_s: Annotated[float | None, typer.Option(help="Leave out what arrives from here on.")] = None,
    tiles: Annotated[int, typer.Option(help="Repeat the trace so often, sharing no prefixes.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Keep only so many requests.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Cut prompts down to this.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Cut answers down to this.")] = None,
    objective: ObjectiveText = "",
) -> None:
    """Read traces, mix and change them, and write one trace.

    Changes are made in this order: mix, keep, slice, tile, scale, limit, clip, objective. The name says how it is
    written: .parquet, .csv with the columns of BurstGPT, which hold less, and anything else as JSON lines.
    """
    from penstock.workload.conditions import parse_condition
    from penstock.workload.transform import clip, keep, mix, scale_rate, set_objective, slice_time, take, tile

    with one_line_errors():
        parts = [_open(name, format_name) for name in traces]
        opened = mix(parts) if len(parts) > 1 else parts[0]
        for text in keep_ or ():
            opened = keep(opened, parse_condition(text), text)
        if start_s > 0 or stop_s is not None:
            opened = slice_time(opened, start_s, stop_s if stop_s is not None else float("inf"))
        opened = tile(opened, tiles) if tiles != 1 else opened
        opened = scale_rate(opened, rate_factor) if rate_factor is not None else opened
        opened = take(opened, limit) if limit is not None else opened
        opened = clip(opened, max_input_tokens=max_input_tokens, max_output_tokens=max_output_tokens)
        opened = set_objective(opened, parse_objective(objective)) if objective else opened
        _write(out, opened)


def _write(out: Path, trace: Trace) -> None:
    """Write to a file beside it first: what is wrong shows while a trace is walked, and leaves no half of one."""
    import os

    from rich.console import Console

    from penstock.workload.parquet import write_parquet
    from penstock.workload.readers import write_burstgpt
    from penstock.workload.trace import TraceError, write_trace

    writers = {".csv": write_burstgpt, ".parquet": write_parquet}
    part = out.with_name(f"{out.name}.part")
    try:
        with counted(trace) as rows:
            count = writers.get(out.suffix, write_trace)(part, rows)
        if count == 0:
            raise TraceError(f"{trace.header.name}: no request is left, {out} is not written")
        os.replace(part, out)
    except OSError as error:
        raise TraceError(f"cannot write {out}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    Console().print(f"written: {out}, {count} requests", highlight=False)


@trace_app.command("generate")
def trace_generate(
    out: OutPath,
    kind: Annotated[
        Traffic, typer.Option(help="Kind of traffic, all at the same mean rate and lengths.")
    ] = Traffic.BURSTS,
    rate_per_s: Annotated[float | None, typer.Option(help="Mean calls per second. [default: 1]")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Length of the trace. [default: 600]")] = None,
    scale: Annotated[float | None, typer.Option(help="Multiply all lengths, for small models.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Longest prompt. [default: 131072]")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Longest answer. [default: 8192]")] = None,
    objective: ObjectiveText = "",
    block_tokens: Annotated[int | None, typer.Option(help="Write hashes of prompt blocks of this size.")] = None,
    parameters: Annotated[
        Path | None, typer.Option(help="A file of `penstock trace fit` instead of a kind; other options change it.")
    ] = None,
    bursts_keep: Annotated[
        BurstsKeep, typer.Option(help="--parameters at another rate: a burst keeps its requests, or its seconds.")
    ] = BurstsKeep.REQUESTS,
    seed: Seed = 0,
    html: HtmlPath = None,
) -> None:
    """Make a trace with the statistics of BurstGPT, or with those of another by its fit."""
    from penstock.workload.burstgpt import generate
    from penstock.workload.presets import preset, shaped

    with one_line_errors():
        if parameters is None:
            rate_per_s, duration_s = (
                1.0 if rate_per_s is None else rate_per_s,
                600.0 if duration_s is None else duration_s,
            )
            spec = preset(kind, rate_per_s=rate_per_s, duration_s=duration_s)
        else:
            spec = _read_spec(parameters)
        spec = shaped(
            spec,
            rate_per_s=rate_per_s,
            duration_s=duration_s,
            scale=scale,
            max_input_tokens=max_input_tokens,
            max_output_tokens=max_output_tokens,
            objective=parse_objective(objective) if objective else None,
            block_tokens=block_tokens,
            keeps_burst_requests=bursts_keep is BurstsKeep.REQUESTS,
        )
        made = generate(spec, seed)
        _write(out, made)
        if html is not None:
            _show([survey_with_count(made)], html)


def _read_spec(path: Path) -> GeneratorSpec:
    import msgspec

    from penstock.workload.burstgpt import GeneratorSpec
    from penstock.workload.trace import TraceError

    try:
        return msgspec.json.decode(path.read_bytes(), type=GeneratorSpec)
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise TraceError(f"{path} holds no generator parameters: {error}") from error


@trace_app.command("fit")
def trace_fit(
    trace: TracePath,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write parameters for `trace generate` here.")] = None,
    format_name: FormatName = None,
    window_s: Annotated[
        float | None, typer.Option(help="Fit burstiness within windows of this length; else up to 20 minutes.")
    ] = None,
    html: HtmlPath = None,
) -> None:
    """Estimate generator parameters from a trace, and say how far a trace that they make is from it."""
    import msgspec
    from rich.console import Console

    from penstock.workload.fit import fit
    from penstock.workload.fit_check import check, made_like
    from penstock.workload.html import Section, write_page
    from penstock.workload.presets import CHATGPT
    from penstock.workload.trace import TraceError
    from penstock.workload.trace_plots import trace_figures
    from penstock.workload.trace_tables import check_table, fit_table

    console = Console()
    with one_line_errors():
        given = _open(trace, format_name)
        with counted(given) as rows:
            fitted = fit(rows, CHATGPT, window_s)
        made = made_like(fitted)
        tables = [fit_table(fitted), check_table(check(given, made, fitted.window_s), made.header.name)]
        for table in tables:
            console.print(table)
        if out is not None:
            try:
                out.write_bytes(msgspec.json.format(msgspec.json.encode(fitted.spec)) + b"\n")
            except OSError as error:
                raise TraceError(f"cannot write {out}: {error.strerror}") from error
            console.print(f"written: {out}", highlight=False)
        if html is not None:
            figures = trace_figures([survey_with_count(given), survey_with_count(made)])
            write_page(html, f"{given.header.name} and its fit", [Section(tables=tables, figures=figures)])
            console.print(f"written: {html}", highlight=False)
