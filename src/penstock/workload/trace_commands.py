"""`penstock trace {show,convert,generate,fit}`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.workload.commands import ObjectiveText, load_trace, one_line_errors, parse_objective
from penstock.workload.kinds import FORMATS, Traffic

if TYPE_CHECKING:
    from penstock.workload.burstgpt import GeneratorSpec
    from penstock.workload.trace import Trace

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
def trace_show(trace: TracePath, format_name: FormatName = None, seed: Seed = 0) -> None:
    """Say what a trace holds: rate, burstiness, lengths, sessions, and how much of its prompts is shared."""
    from rich.console import Console

    from penstock.workload.survey import trace_table

    with one_line_errors():
        Console().print(trace_table(_open(trace, format_name, seed)))


@trace_app.command("convert")
def trace_convert(
    trace: TracePath,
    out: OutPath,
    format_name: FormatName = None,
    rate_factor: Annotated[float | None, typer.Option(help="Divide all times by this; pauses stay.")] = None,
    start_s: Annotated[float, typer.Option(help="Leave out what arrives before.")] = 0.0,
    stop_s: Annotated[float | None, typer.Option(help="Leave out what arrives from here on.")] = None,
    tiles: Annotated[int, typer.Option(help="Repeat the trace so often, sharing no prefixes.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Keep only so many requests.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Cut prompts down to this.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Cut answers down to this.")] = None,
    objective: ObjectiveText = "",
) -> None:
    """Read a trace, change it (slice, tile, scale, limit, clip, in this order) and write it as JSON lines.

    A name that ends in .csv is written with BurstGPT's columns, which hold less.
    """
    from penstock.workload.transform import clip, scale_rate, set_objective, slice_time, take, tile

    with one_line_errors():
        opened = _open(trace, format_name)
        if start_s > 0 or stop_s is not None:
            opened = slice_time(opened, start_s, stop_s if stop_s is not None else float("inf"))
        opened = tile(opened, tiles) if tiles != 1 else opened
        opened = scale_rate(opened, rate_factor) if rate_factor is not None else opened
        opened = take(opened, limit) if limit is not None else opened
        opened = clip(opened, max_input_tokens=max_input_tokens, max_output_tokens=max_output_tokens)
        opened = set_objective(opened, parse_objective(objective)) if objective else opened
        _write(out, opened)


def _write(out: Path, trace: Trace) -> None:
    from rich.console import Console

    from penstock.workload.readers import write_burstgpt
    from penstock.workload.trace import TraceError, write_trace

    try:
        count = write_burstgpt(out, trace) if out.suffix == ".csv" else write_trace(out, trace)
    except OSError as error:
        raise TraceError(f"cannot write {out}: {error.strerror}") from error
    Console().print(f"written: {out}, {count} requests", highlight=False)


@trace_app.command("generate")
def trace_generate(
    out: OutPath,
    kind: Annotated[
        Traffic, typer.Option(help="Kind of traffic, all at the same mean rate and lengths.")
    ] = Traffic.BURSTS,
    rate_per_s: Annotated[float, typer.Option(help="Mean calls per second.")] = 1.0,
    duration_s: Annotated[float, typer.Option(help="Length of the trace.")] = 600.0,
    scale: Annotated[float, typer.Option(help="Multiply all lengths, for small models.")] = 1.0,
    max_input_tokens: Annotated[int, typer.Option(help="Longest prompt.")] = 131_072,
    max_output_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 8192,
    objective: ObjectiveText = "",
    parameters: Annotated[
        Path | None, typer.Option(help="Take everything from this file of `penstock trace fit` instead.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make a trace with the statistics of BurstGPT."""
    from penstock.workload.burstgpt import generate
    from penstock.workload.presets import preset

    with one_line_errors():
        spec = _read_spec(parameters) if parameters else preset(
            kind,
            rate_per_s=rate_per_s,
            duration_s=duration_s,
            scale=scale,
            max_input_tokens=max_input_tokens,
            max_output_tokens=max_output_tokens,
            objective=parse_objective(objective),
        )  # fmt: skip
        _write(out, generate(spec, seed))


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
) -> None:
    """Estimate generator parameters from a trace, and say how far the generator then is from it."""
    import msgspec
    from rich.console import Console

    from penstock.workload.fit import fit
    from penstock.workload.presets import CHATGPT
    from penstock.workload.survey import fit_table

    with one_line_errors():
        fitted = fit(_open(trace, format_name), CHATGPT, window_s)
        Console().print(fit_table(fitted))
        if out is not None:
            out.write_bytes(msgspec.json.format(msgspec.json.encode(fitted.spec)) + b"\n")
            Console().print(f"written: {out}", highlight=False)
