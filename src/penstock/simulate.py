"""`penstock simulate`: a trace, a model and a device by name, and what clients would have seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.flags import Quantize, SetOption, add_settings
from penstock.workload.commands import (
    DEMO,
    DurationS,
    HtmlPath,
    PacingChoice,
    RatePerS,
    Scale,
    ShowProgress,
    TraceName,
    check_outputs,
    load_trace,
    one_line_errors,
    parse_objective,
)
from penstock.workload.kinds import Pacing

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.sim.fleet import Fleet
    from penstock.sim.run import Setup
    from penstock.workload.records import Run
    from penstock.workload.trace import Trace

SHOWN_EVERY = 256  # requests between two looks at the progress bar
LONG_REQUESTS = 10_000  # a trace that is worth the second that another process takes to start

DEFAULT_DEVICE = "h200"


def simulate_command(
    trace: TraceName = DEMO,
    model: Annotated[str, typer.Option(help="A Hugging Face directory, or a shape by name.")] = "llama-8b",
    device: Annotated[
        list[str] | None,
        typer.Option(help="a100, h100, h200, b200, l4, rtx4090 or cpu; repeat it with --search. [default: h200]"),
    ] = None,
    quantize: Quantize = "none",
    profile: Annotated[
        Path | None,
        typer.Option(help="A cost model that `penstock profile` wrote. [default: one that ships, or data sheets]"),
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Engines behind the dispatcher.")] = 1,
    dispatch: Annotated[str, typer.Option(help="least-loaded or round-robin.")] = "least-loaded",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that simulate; more than 1 needs --dispatch round-robin and open pacing. "
            "[default: one per core where that is so and the trace is long, else 1]",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="A preset; repeat it to compare. [default: default]")
    ] = None,
    set_: SetOption = None,
    max_running: Annotated[int, typer.Option(min=1, help="Most sequences at a time, of an instance.")] = 256,
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV pool, as 40GiB. [default: a share]")] = None,
    host_kv_memory: Annotated[str, typer.Option(help="Size of the tier in host memory, as 100GiB.")] = "0",
    objective: Annotated[
        str, typer.Option("--slo", "--objective", help="Limits in seconds, as ttft=1,tpot=0.05,deadline=20.")
    ] = "",
    search: Annotated[
        bool, typer.Option("--search", help="Find the highest rate that holds --slo, and the cheapest fleet.")
    ] = False,
    attainment: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="--search: share of requests that must keep their limits.")
    ] = 0.9,
    most_instances: Annotated[int, typer.Option(min=1, help="--search: the largest fleet to try.")] = 64,
    replay_log: Annotated[
        Path | None, typer.Option(help="Compare a step log of `penstock serve --step-log` with the cost model.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write records and summary to this file.")] = None,
    html: HtmlPath = None,
    limit: Annotated[int | None, typer.Option(help="Only so many requests.")] = None,
    speed: Annotated[float, typer.Option(help="2 lets requests arrive twice as fast.")] = 1.0,
    rate_per_s: RatePerS = None,
    duration_s: DurationS = None,
    scale: Scale = None,
    pacing: PacingChoice = Pacing.OPEN,
    hidden_lengths: Annotated[
        bool, typer.Option(help="Requests name no max_tokens, so no policy knows how long an answer gets.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of prompts, and of a made trace.")] = 0,
    show_progress: ShowProgress = True,
) -> None:
    """Run the engine's own scheduler over a trace on a virtual clock, and report what clients would have seen.

    Step times are predicted, without a device and without torch. An interrupt prints the report of what has ended.
    """
    from rich.console import Console

    from penstock.core.errors import ConfigError
    from penstock.hardware import described, device_of_profile, hardware_of
    from penstock.policy.presets import build_policies
    from penstock.runtime.memory_plan import parse_bytes
    from penstock.sim.run import Setup

    console = Console()
    with one_line_errors():
        if replay_log is not None:
            from penstock.calibrate import run_calibration

            run_calibration(replay_log, profile, console)
            raise typer.Exit(0)
        limits = parse_objective(objective)
        check_outputs(out, html)
        make_trace = partial(_trace, trace, seed, rate_per_s, duration_s, scale, speed, limit, limits)
        make_trace()  # a wrong one is told first
        devices = device or [DEFAULT_DEVICE if profile is None else device_of_profile(profile)]
        if len(devices) > 1 and not search:
            raise ConfigError("more than one --device: only --search compares devices; give one")
        if len(devices) > 1 and profile is not None:
            raise ConfigError("more than one --device with a --profile: that is of one of them; leave one out")
        if search and limits == NO_OBJECTIVE:
            raise ConfigError("--search needs limits to hold: give --slo, as --slo ttft=1,tpot=0.05")
        kv_bytes = None if kv_memory is None else parse_bytes(kv_memory)
        what = described(model, quantize)
        options: dict[str, dict[str, object]] = {}
        add_settings(options, set_ or ())
        setups = []
        for preset in policy or ["default"]:
            build_policies(preset, options=options)  # a wrong name is told before anything runs
            setups += [
                Setup(
                    hardware=hardware_of(
                        what,
                        name,
                        max_rows=max_running,
                        kv_bytes=kv_bytes,
                        host_kv_bytes=parse_bytes(host_kv_memory),
                        profile=profile,
                    ),
                    policies=partial(build_policies, preset, options=options),
                    label=preset,
                    n_instances=instances,
                    dispatch=dispatch,
                    pacing=pacing,
                    seed=seed,
                    are_lengths_hidden=hidden_lengths,
                )
                for name in devices
            ]
        progress_console = console if show_progress else Console(quiet=True)
        if search:
            _search(setups, make_trace, jobs, limits, attainment, most_instances, console, progress_console)
        else:
            _compare(setups, make_trace, jobs, limits, out, html, console, progress_console)


def _trace(
    name: str,
    seed: int,
    rate_per_s: float | None,
    duration_s: float | None,
    scale: float | None,
    speed: float,
    limit: int | None,
    limits: Objective,
) -> Trace:
    """What the options ask for; every process of a simulation makes it for itself."""
    from penstock.workload.transform import fill_objective, scale_rate, take

    rows = load_trace(name, seed, rate_per_s=rate_per_s, duration_s=duration_s, scale=scale)
    rows = scale_rate(rows, speed, scales_pauses=True) if speed != 1 else rows
    rows = take(rows, limit) if limit is not None else rows
    return fill_objective(rows, limits) if limits != NO_OBJECTIVE else rows


def _faster(make_trace: Callable[[], Trace], speed: float) -> Trace:
    from penstock.workload.transform import scale_rate

    return scale_rate(make_trace(), speed) if speed != 1 else make_trace()


def _compare(
    setups: list[Setup],
    make_trace: Callable[[], Trace],
    jobs: int | None,
    limits: Objective,
    out: Path | None,
    html: Path | None,
    console: Console,
    progress_console: Console,
) -> None:
    """A report of each setup, and of each beside the first."""
    from penstock.workload.compare import compare
    from penstock.workload.measure import summarise
    from penstock.workload.report import render, render_comparison, write_run
    from penstock.workload.run_plots import write_html

    runs: list[Run] = []
    shown = []
    for setup in setups:
        run = simulate_with_bar(setup, make_trace, progress_console, jobs)
        runs.append(run)
        shown.append(render(run, summarise(run, limits)))
        console.print(shown[-1])
        if not run.header.is_whole:
            break
    console.print(setups[0].hardware.cost.describe(), style="dim", highlight=False)
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


def _search(
    setups: list[Setup],
    make_trace: Callable[[], Trace],
    jobs: int | None,
    limits: Objective,
    attainment_frac: float,
    most_instances: int,
    console: Console,
    progress_console: Console,
) -> None:
    """What each setup holds, how many instances the trace needs, and which fleet is the cheapest."""
    from rich.table import Table

    from penstock.sim.search import fewest_instances, highest_speed
    from penstock.workload.measure import summarise

    rate_per_s = _rate_per_s(make_trace())
    table = Table(title=f"At least {attainment_frac:.0%} of requests within their limits", title_justify="left")
    for column in ("policy", "device", "instances", "highest rate, requests/s", "for this trace", "US$ per hour"):
        table.add_column(column, justify="left" if column in ("policy", "device") else "right")
    cheapest: tuple[float, str] | None = None
    tried: list[tuple[float, float]] = []  # requests/s and what share was within its limits, of this setup alone
    for setup in setups:
        tried.clear()

        def attained(speed: float, n: int, setup: Setup = setup) -> float:
            load = partial(_faster, make_trace, speed)
            n_jobs = None if jobs is None else min(jobs, n)
            run = simulate_with_bar(replace(setup, n_instances=n), load, progress_console, n_jobs)
            if not run.header.is_whole:
                raise KeyboardInterrupt
            frac = summarise(run, limits).attainment_frac
            if n == setup.n_instances:
                tried.append((speed * rate_per_s, frac))
            return frac

        try:
            bracket = highest_speed(lambda speed, n=setup.n_instances: attained(speed, n), attainment_frac)  # type: ignore[misc]
            n_needed = fewest_instances(lambda n: attained(1.0, int(n)), attainment_frac, most_instances)
        except KeyboardInterrupt:
            _tell_tried(console, setup, tried)
            break
        name = setup.hardware.device.name
        price = None if n_needed is None else replace(setup, n_instances=n_needed).price_per_hour
        if price is not None and (cheapest is None or price < cheapest[0]):
            cheapest = price, f"{n_needed} x {name} with {setup.label}, US$ {price:.2f} per hour"
        table.add_row(
            setup.label,
            name,
            str(setup.n_instances),
            "none" if bracket.held is None else f"{bracket.held * rate_per_s:.2f}",
            f"more than {most_instances}" if n_needed is None else str(n_needed),
            "-" if price is None else f"{price:.2f}",
        )
    if table.row_count:
        console.print(table)
    answer = cheapest[1] if cheapest else "none holds it" if table.row_count == len(setups) else "not known yet"
    console.print(f"this trace: {rate_per_s:.2f} requests/s; cheapest: {answer}")


def _tell_tried(console: Console, setup: Setup, tried: list[tuple[float, float]]) -> None:
    """What an interrupted search knows of the setup that it was at."""
    loads = ", ".join(f"{rate_per_s:.2f} requests/s: {frac:.1%}" for rate_per_s, frac in sorted(tried)) or "nothing yet"
    where = f"{setup.n_instances} x {setup.hardware.device.name} with {setup.label}"
    console.print(f"! interrupted; {where}, within limits at {loads}", style="yellow", highlight=False)


def _rate_per_s(rows: Trace) -> float:
    arrivals_s = [row.arrival_s for row in rows]
    return (len(arrivals_s) - 1) / (arrivals_s[-1] - arrivals_s[0]) if arrivals_s[-1] > arrivals_s[0] else 0.0


def simulate_with_bar(
    setup: Setup, make_trace: Callable[[], Trace], console: Console, n_jobs: int | None = None
) -> Run:
    """Simulate while a bar shows how far it is. Ctrl-C ends it early, with the records of what had ended.

    n_jobs: processes; None: one per core, where instances never meet and there is work for them.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from penstock.sim.jobs import Jobs, most_jobs
    from penstock.sim.run import fleet_of, run_of

    trace = make_trace()
    total = sum(1 for _ in trace)  # a wrong row is told before anything runs
    if n_jobs is None:
        n_jobs = min(most_jobs(setup), os.cpu_count() or 1) if total >= LONG_REQUESTS else 1
    served: Jobs | Fleet
    if n_jobs > 1:
        served = Jobs(setup=setup, make_trace=make_trace, n_jobs=n_jobs)
        simulate: Callable[[Callable[[int, float], None]], None] = served.run
    else:
        served = fleet_of(setup, trace)
        simulate = partial(served.run, trace)
    columns = (TextColumn(setup.label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    is_whole = True
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("", total=total)

        shown = 0

        def show(n: int, at_s: float) -> None:
            nonlocal shown
            if n - shown >= SHOWN_EVERY:
                shown = n
                progress.update(bar, completed=n, description=f"second {at_s:.0f}")

        try:
            simulate(show)
        except KeyboardInterrupt:
            is_whole = False
    return run_of(setup, trace, served, is_whole=is_whole)
