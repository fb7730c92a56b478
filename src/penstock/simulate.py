"""`penstock simulate`: a trace, a model and a device by name, and what clients would have seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.workload.commands import DEMO, MADE, HtmlPath, ObjectiveText, load_trace, one_line_errors, parse_objective
from penstock.workload.kinds import Pacing

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.cost.shape import ModelShape
    from penstock.sim.run import Setup
    from penstock.workload.records import Run
    from penstock.workload.trace import Trace

SHOWN_EVERY = 256  # requests between two looks at the progress bar


def simulate_command(
    trace: Annotated[
        str, typer.Option("--trace", "-t", help=f"A trace file, or a kind of traffic: {', '.join(MADE)}.")
    ] = DEMO,
    model: Annotated[str, typer.Option(help="A Hugging Face directory, or a shape by name.")] = "llama-8b",
    device: Annotated[str, typer.Option(help="a100, h100, h200, b200, l4 or rtx4090.")] = "h200",
    instances: Annotated[int, typer.Option(min=1, help="Engines behind the dispatcher.")] = 1,
    dispatch: Annotated[str, typer.Option(help="least-loaded or round-robin.")] = "least-loaded",
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="A preset; repeat it to compare. [default: default]")
    ] = None,
    max_running: Annotated[int, typer.Option(min=1, help="Most sequences at a time, of an instance.")] = 256,
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV pool, as 40GiB. [default: a share]")] = None,
    objective: ObjectiveText = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write records and summary to this file.")] = None,
    html: HtmlPath = None,
    limit: Annotated[int | None, typer.Option(help="Only so many requests.")] = None,
    speed: Annotated[float, typer.Option(help="2 lets requests arrive twice as fast.")] = 1.0,
    rate_per_s: Annotated[float | None, typer.Option(help="Made traffic: mean calls per second. [default: 1]")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Made traffic: its length. [default: 600]")] = None,
    scale: Annotated[float | None, typer.Option(help="Made traffic: multiply all lengths. [default: 1]")] = None,
    pacing: Annotated[
        Pacing, typer.Option(help="open: each request at its time. sessions: a turn waits for the answer before it.")
    ] = Pacing.OPEN,
    hidden_lengths: Annotated[
        bool, typer.Option(help="Requests name no max_tokens, so no policy knows how long an answer gets.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of prompts, and of a made trace.")] = 0,
    show_progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")] = True,
) -> None:
    """Run the engine's own scheduler over a trace on a virtual clock, and report what clients would have seen.

    Step times are predicted, without a device and without torch. An interrupt prints the report of what has ended.
    """
    from rich.console import Console

    from penstock.core.errors import UnknownName
    from penstock.policy.presets import build_policies
    from penstock.runtime.memory_plan import parse_bytes
    from penstock.sim.fleet import DISPATCHERS
    from penstock.sim.run import Setup, hardware_of
    from penstock.workload.compare import compare
    from penstock.workload.html import write_html
    from penstock.workload.measure import summarise
    from penstock.workload.report import render, render_comparison, write_run
    from penstock.workload.transform import scale_rate, take

    console = Console()
    with one_line_errors():
        if dispatch not in DISPATCHERS:
            raise UnknownName("dispatcher", dispatch, DISPATCHERS)
        limits = parse_objective(objective)
        rows = load_trace(trace, seed, rate_per_s=rate_per_s, duration_s=duration_s, scale=scale)
        rows = scale_rate(rows, speed, scales_pauses=True) if speed != 1 else rows
        rows = take(rows, limit) if limit is not None else rows
        hardware = hardware_of(
            _shape(model), device, max_rows=max_running, kv_bytes=None if kv_memory is None else parse_bytes(kv_memory)
        )
        runs: list[Run] = []
        shown = []
        for name in policy or ["default"]:
            build_policies(name)  # a wrong name is told before anything runs
        for name in policy or ["default"]:
            setup = Setup(
                hardware=hardware,
                policies=lambda name=name: build_policies(name),  # type: ignore[misc]
                label=name,
                n_instances=instances,
                dispatch=dispatch,
                pacing=pacing,
                seed=seed,
                are_lengths_hidden=hidden_lengths,
            )
            run, is_whole = _simulate(setup, rows, console if show_progress else Console(quiet=True))
            runs.append(run)
            shown.append(render(run, summarise(run, limits)))
            console.print(shown[-1])
            if not is_whole:
                console.print("! interrupted: the figures are of what had ended", style="yellow")
                break
        for other in runs[1:]:
            shown.append(render_comparison(compare(runs[0], other, limits)))
            console.print(shown[-1])
        if out is not None:
            for run in runs:
                path = out if len(runs) == 1 else out.with_stem(f"{out.stem}-{run.name}")
                write_run(path, run, summarise(run, limits))
                console.print(f"written: {path}", highlight=False)
        if html is not None:
            write_html(html, runs, shown, limits)
            console.print(f"written: {html}", highlight=False)


def _shape(model: str) -> ModelShape:
    from penstock.bench.shapes import SHAPES
    from penstock.cost.shape import shape_of
    from penstock.options import BUNDLED
    from penstock.sim.run import read_shape

    if model in SHAPES:
        return shape_of(model, SHAPES[model])
    return read_shape(BUNDLED.get(model, Path(model)))


def _simulate(setup: Setup, trace: Trace, console: Console) -> tuple[Run, bool]:
    """(what was recorded, whether the trace came to its end)."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from penstock.sim.run import fleet_of, run_of

    fleet = fleet_of(setup, trace)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    is_whole = True
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(setup.label)

        def show(n: int, at_s: float) -> None:
            if n % SHOWN_EVERY == 0:
                progress.update(bar, description=f"{setup.label}: {n} requests ended by second {at_s:.0f}")

        try:
            fleet.run(trace, show)
        except KeyboardInterrupt:
            is_whole = False
    return run_of(setup, trace, fleet), is_whole
