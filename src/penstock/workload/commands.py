"""What `penstock replay` and `penstock report` do; the CLI mounts these (and `trace_app` of trace_commands.py).

Each command imports what it needs when it runs: numpy and aiohttp would triple the time of `penstock --help`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.core.errors import UserError
from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.kinds import Pacing, Traffic

if TYPE_CHECKING:
    from penstock.workload.trace import Trace

DEMO = "demo"
MADE = (DEMO, *Traffic)
API_KEY_VARIABLE = "OPENAI_API_KEY"

Url = Annotated[str, typer.Option("--url", "-u", help="The server, with or without /v1.")]
ObjectiveText = Annotated[
    str,
    typer.Option(
        "--objective",
        help="Limits in seconds for requests without their own, as ttft=1,tpot=0.1,deadline=20 (any of them).",
    ),
]

TraceName = Annotated[
    str, typer.Option("--trace", "-t", help=f"A trace file, or a kind of traffic: {', '.join(MADE)}.")
]
RatePerS = Annotated[float | None, typer.Option(help="Made traffic: mean calls per second. [default: 1]")]
DurationS = Annotated[float | None, typer.Option(help="Made traffic: its length. [default: 600]")]
Scale = Annotated[float | None, typer.Option(help="Made traffic: multiply all lengths. [default: 1]")]
PacingChoice = Annotated[
    Pacing, typer.Option(help="open: each request at its time. sessions: a turn waits for the answer before it.")
]
ShowProgress = Annotated[bool, typer.Option("--progress/--no-progress", help="Show a progress bar.")]

HtmlPath = Annotated[
    Path | None, typer.Option("--html", help="Write tables and plots to this page (needs penstock[report]).")
]


def replay_command(
    trace: TraceName = DEMO,
    url: Url = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model name to send; without it, the first of /v1/models.")] = None,
    label: Annotated[
        str, typer.Option("--policy-label", "-l", help="Name of this run in reports, as the policy that served it.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write every record and the summary to this JSON file.")
    ] = None,
    html: HtmlPath = None,
    speed: Annotated[float, typer.Option(help="2 replays twice as fast: gaps and pauses are halved.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Replay only so many requests.")] = None,
    rate_per_s: RatePerS = None,
    duration_s: DurationS = None,
    scale: Scale = None,
    pacing: PacingChoice = Pacing.OPEN,
    objective: ObjectiveText = "",
    max_input_tokens: Annotated[int | None, typer.Option(help="Cut prompts down to this.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Cut answers down to this.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of made prompts, and of a made trace.")] = 0,
    vocab_stop: Annotated[int, typer.Option(help="Made prompts use token ids from 3 up to this, exclusive.")] = 256,
    request_timeout_s: Annotated[float, typer.Option(help="Give a request up after this many seconds.")] = 600.0,
    max_total_s: Annotated[float, typer.Option(help="End the replay after this many seconds.")] = 3600.0,
    send_objectives: Annotated[bool, typer.Option(help="Send each request's limits in its body.")] = True,
    show_progress: ShowProgress = True,
) -> None:
    """Replay a trace against an OpenAI-compatible server and report what the clients saw.

    Exit status: 0 if at least one request was answered, 1 if none was, 2 if the replay could not run.

    The key for the server, if it needs one, is read from OPENAI_API_KEY.
    """
    import asyncio

    from rich.console import Console

    from penstock.workload.measure import summarise
    from penstock.workload.progress import replay_with_bar
    from penstock.workload.replay import ReplayOptions
    from penstock.workload.report import render, write_run
    from penstock.workload.run_plots import write_html
    from penstock.workload.transform import clip, fill_objective, take

    console = Console()
    with one_line_errors():
        fallback = parse_objective(objective)
        check_outputs(out, html)
        rows = load_trace(trace, seed, rate_per_s=rate_per_s, duration_s=duration_s, scale=scale)
        rows = take(rows, limit) if limit is not None else rows
        rows = fill_objective(rows, fallback) if fallback != NO_OBJECTIVE else rows
        rows = clip(rows, max_input_tokens=max_input_tokens, max_output_tokens=max_output_tokens)
        options = ReplayOptions(
            url=url,
            model=model,
            label=label,
            pacing=pacing,
            speed=speed,
            seed=seed,
            vocab_stop=vocab_stop,
            request_timeout_s=request_timeout_s,
            max_total_s=max_total_s,
            has_objectives=send_objectives,
            api_key=os.environ.get(API_KEY_VARIABLE),
        )
        raise_open_files()
        run = asyncio.run(replay_with_bar(rows, options, console if show_progress else Console(quiet=True)))
        summary = summarise(run, fallback)
        shown = render(run, summary)
        console.print(shown)
        if out is not None:
            write_run(out, run, summary)
            console.print(f"written: {out}", highlight=False)
        if html is not None:
            write_html(html, [run], [shown], fallback)
            console.print(f"written: {html}", highlight=False)
    if summary.ok == 0:
        raise typer.Exit(1)


def report_command(
    results: Annotated[list[Path], typer.Argument(help="Result files of `penstock replay --out`.")],
    objective: ObjectiveText = "",
    html: HtmlPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of tables.")] = False,
) -> None:
    """Show one result again, or compare others with the first, with bootstrap intervals."""
    import msgspec
    from rich.console import Console

    from penstock.workload.compare import compare
    from penstock.workload.measure import summarise
    from penstock.workload.records import read_run
    from penstock.workload.report import render, render_comparison
    from penstock.workload.run_plots import write_html
    from penstock.workload.windows import windows

    console = Console()
    with one_line_errors():
        fallback = parse_objective(objective)
        runs = [read_run(path) for path in results]
        summaries = [summarise(run, fallback) for run in runs]
        comparisons = [compare(runs[0], other, fallback) for other in runs[1:]]
        if as_json:
            labels = [run.name for run in runs]
            over_time = [windows(run, fallback) for run in runs]
            document = {"labels": labels, "summaries": summaries, "windows": over_time, "comparisons": comparisons}
            print(msgspec.json.encode(document).decode())
            return
        tables = [render(run, summary) for run, summary in zip(runs, summaries, strict=True)]
        tables += [render_comparison(comparison) for comparison in comparisons]
        for table in tables:
            console.print(table)
        if html is not None:
            write_html(html, runs, tables, fallback)
            console.print(f"written: {html}", highlight=False)


def load_trace(
    name: str,
    seed: int,
    *,
    rate_per_s: float | None = None,
    duration_s: float | None = None,
    scale: float | None = None,
) -> Trace:
    """A file of any known format, or traffic made on the spot: `demo`, or a preset shaped by the other options."""
    from penstock.workload.burstgpt import generate
    from penstock.workload.demo import bursty_demo_trace
    from penstock.workload.presets import preset
    from penstock.workload.readers import open_trace
    from penstock.workload.trace import TraceError

    if name in set(Traffic):
        rate_per_s, duration_s, scale = (
            default if value is None else value
            for value, default in ((rate_per_s, 1.0), (duration_s, 600.0), (scale, 1.0))
        )
        return generate(preset(name, rate_per_s=rate_per_s, duration_s=duration_s, scale=scale), seed)
    shaping = {"--rate-per-s": rate_per_s, "--duration-s": duration_s, "--scale": scale}
    if any(value is not None for value in shaping.values()):
        options = ", ".join(option for option, value in shaping.items() if value is not None)
        raise TraceError(
            f"{options} shape made traffic ({', '.join(Traffic)}), not {name}: for a file use --speed, --limit, "
            "--max-input-tokens, or `penstock trace convert`"
        )
    return bursty_demo_trace(seed=seed) if name == DEMO else open_trace(Path(name))


def check_outputs(out: Path | None, html: Path | None) -> None:
    """What a run writes at its end can be written. Raises ReplayError: before a long run, rather than behind it."""
    from penstock.workload.html import check_can_plot
    from penstock.workload.records import ReplayError

    for path in (out, html):
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent} that can be written to"
            raise ReplayError(f"cannot write {path}: {why}. Check the path.")
    if html is not None:
        check_can_plot()


def parse_objective(text: str) -> Objective:
    """`ttft=1,tpot=0.1,deadline=20` as an Objective; empty is no objective."""
    from penstock.workload.records import ReplayError

    if not text.strip():
        return NO_OBJECTIVE
    limits_s: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            limits_s[{"ttft": "ttft_s", "tpot": "tpot_s", "deadline": "deadline_s"}[name]] = float(value)
        except (KeyError, ValueError):
            raise ReplayError(
                f"{part.strip()!r} is not a limit: give ttft, tpot or deadline and seconds, as ttft=1,tpot=0.1"
            ) from None
    return Objective(**limits_s)


def raise_open_files() -> None:
    """Each stream is a socket: allow as many as the system lets this user have."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A wrong input is one line on standard error and exit status 2, not a stack trace."""
    try:
        yield
    except UserError as error:
        from rich.console import Console

        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
