"""`penstock trace {show,convert,generate,fit}`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from penstock.workload.burstgpt import GeneratorSpec, generate
from penstock.workload.commands import ObjectiveText, load_trace, one_line_errors, parse_objective
from penstock.workload.fit import Fit, fit
from penstock.workload.presets import CHATGPT, Traffic, preset
from penstock.workload.readers import READERS, open_trace, write_burstgpt
from penstock.workload.trace import Trace, TraceError, write_trace
from penstock.workload.transform import clip, scale_rate, set_objective, slice_time, take, tile

trace_app = typer.Typer(help="Look at, convert, generate and fit request traces.", no_args_is_help=True)

TracePath = Annotated[str, typer.Argument(help="A trace file of any known format, or a kind of traffic to make.")]
FormatName = Annotated[
    str | None, typer.Option("--format", help=f"Format of the file: {', '.join(READERS)}; else by its first line.")
]
OutPath = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Seed = Annotated[int, typer.Option(help="The same seed makes the same trace.")]
PERCENTILES = (50, 80, 95, 99)


def _open(name: str, format_name: str | None, seed: int = 0) -> Trace:
    return open_trace(Path(name), format_name) if format_name else load_trace(name, seed)


@trace_app.command("show")
def trace_show(trace: TracePath, format_name: FormatName = None, seed: Seed = 0) -> None:
    """Say what a trace holds: rate, burstiness, lengths, sessions, and how much of its prompts is shared."""
    with one_line_errors():
        opened = _open(trace, format_name, seed)
        Console().print(_shown(opened))


def _shown(trace: Trace) -> Table:
    rows = [(r.arrival_s, r.input_tokens, r.output_tokens, len(r.block_hashes)) for r in trace]
    if not rows:
        raise TraceError(f"{trace.header.name}: no request is left")
    arrivals_s, inputs, outputs, _ = np.array(rows, dtype=float).T
    gaps_s = np.diff(arrivals_s)
    table = Table(trace.header.name, "", *(f"p{percent}" for percent in PERCENTILES), "max")
    table.add_row("steps", "; ".join(trace.header.steps) or "-")
    table.add_row("requests", f"{len(rows)} in {arrivals_s[-1] - arrivals_s[0]:.1f} s")
    if gaps_s.sum() > 0:
        table.add_row("mean rate", f"{gaps_s.size / gaps_s.sum():.3f} /s")
        table.add_row("gaps, s", f"CV {gaps_s.std() / gaps_s.mean():.2f}", *_percentiles(gaps_s, "{:.3g}"))
        table.add_row("same instant", f"{(gaps_s == 0).mean():.1%} of gaps are 0")
    table.add_row("input tokens", f"mean {inputs.mean():.0f}", *_percentiles(inputs, "{:.0f}"))
    table.add_row("output tokens", f"mean {outputs.mean():.0f}", *_percentiles(outputs, "{:.0f}"))
    table.add_row("failed", f"{(outputs == 0).mean():.2%}")
    _add_sharing(table, trace)
    return table


def _percentiles(values: np.ndarray, form: str) -> list[str]:
    return [form.format(value) for value in (*np.percentile(values, PERCENTILES), values.max())]


def _add_sharing(table: Table, trace: Trace) -> None:
    """Sessions, clients, and the share of blocks that a cache without limit would have."""
    turns: dict[str, int] = {}
    clients: set[str] = set()
    seen: set[int] = set()
    n_blocks = n_hits = 0
    for request in trace:
        clients.add(request.client)
        if request.session is not None:
            turns[request.session] = turns.get(request.session, 0) + 1
        n_blocks += len(request.block_hashes)
        for block_hash in request.block_hashes:
            if block_hash not in seen:
                break
            n_hits += 1
        seen.update(request.block_hashes)
    if turns:
        counts = np.array(list(turns.values()), dtype=float)
        summary = f"{counts.size}, {(counts == 1).mean():.0%} with one turn"
        table.add_row("sessions, turns", summary, *_percentiles(counts, "{:.0f}"))
    if clients != {""}:
        table.add_row("clients", str(len(clients)))
    if n_blocks:
        table.add_row("shared blocks", f"{n_hits / n_blocks:.1%} of {n_blocks} blocks of {trace.header.block_tokens}")


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
    with one_line_errors():
        fitted = fit(_open(trace, format_name), CHATGPT, window_s)
        Console().print(_fit_table(fitted))
        if out is not None:
            out.write_bytes(msgspec.json.format(msgspec.json.encode(fitted.spec)) + b"\n")
            Console().print(f"written: {out}", highlight=False)


def _fit_table(fitted: Fit) -> Table:
    table = Table(
        "fit", "", title=f"{fitted.requests} requests, {len(fitted.windows)} windows of {fitted.window_s:.0f} s"
    )
    alphas = [window.alpha for window in fitted.windows if window.alpha is not None]
    spread = f" (windows {min(alphas):.2f} to {max(alphas):.2f})" if alphas else ""
    table.add_row("Gamma shape of gaps, 1 is Poisson", f"{fitted.alpha:.2f}{spread}")
    if fitted.together_frac > 0.05:
        table.add_row(
            "! gaps of 0", f"{fitted.together_frac:.0%}: a coarse clock; shapes say little, spread the rows first"
        )
    for regime in fitted.spec.services[0].regimes:
        text = f"rate x{regime.rate_mult:.2f}, shape {regime.alpha:.2f}, {regime.mean_dwell_s:.0f} s at a time"
        table.add_row(f"regime {regime.name}", text)
    for title, distance in (
        ("gaps to Gamma of that shape", fitted.ks_gaps_gamma),
        ("gaps to Poisson", fitted.ks_gaps_poisson),
        ("inputs to the fitted table", fitted.ks_inputs),
        ("outputs to the fitted table", fitted.ks_outputs),
        ("inputs to ChatGPT conversations", fitted.ks_inputs_chatgpt),
        ("outputs to ChatGPT conversations", fitted.ks_outputs_chatgpt),
    ):
        table.add_row(f"KS distance, {title}", f"{distance:.3f}")
    return table
