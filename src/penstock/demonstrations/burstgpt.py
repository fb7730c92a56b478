"""BurstGPT (arXiv 2401.17644): what the order of requests in time does to goodput, at one mean rate.

The four kinds of traffic of workload/presets.py, with the same seed, rate and limits, on a simulated GPU and on the
real engine with the bundled model over HTTP. Machines differ, so what is asked of the CPU is relative to what it was
measured to do a moment before: its rate to what it answers when all come at once, its limits to a request alone.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.demo import local_server
from penstock.hardware import described, hardware_of
from penstock.policy.presets import build_policies
from penstock.sim.run import Setup
from penstock.simulate import simulate_with_bar
from penstock.workload.burstgpt import generate
from penstock.workload.html import Section, write_page
from penstock.workload.kinds import Traffic
from penstock.workload.measure import Summary, summarise
from penstock.workload.presets import CHATGPT, preset
from penstock.workload.progress import replay_with_bar
from penstock.workload.records import ReplayError, Run
from penstock.workload.replay import ReplayOptions
from penstock.workload.report import ms
from penstock.workload.run_plots import goodput_figure, run_figures
from penstock.workload.trace import Trace, TraceHeader
from penstock.workload.transform import scale_rate

SEED = 0
AT_A_TIME = 16  # sequences: a burst must be more than one batch, as it is on a GPU that serves thousands
LOAD_FRAC = 0.6  # of what the CPU answers when everything comes at once
LIMITS_OVER_ALONE = 5.0  # limits over the median of requests that meet nobody
DAY_NOTE = "steady, ragged and bursts ask for the same lengths; day has sessions, whose prompts grow with every turn."
ALONE_REQUESTS = 20
ALONE_EVERY_S = 0.4
PROBE_REQUESTS = 96
SHORTEST_S = 3.0  # less may hold no request of a kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Traffic of one rate and one objective. scale: of BurstGPT's lengths."""

    duration_s: float
    rate_per_s: float = 1.0
    objective: Objective = NO_OBJECTIVE
    scale: float = 1.0
    max_input_tokens: int = 131_072
    max_output_tokens: int = 8192

    def trace(self, kind: Traffic) -> Trace:
        spec = preset(
            kind,
            rate_per_s=self.rate_per_s,
            duration_s=self.duration_s,
            scale=self.scale,
            max_input_tokens=self.max_input_tokens,
            max_output_tokens=self.max_output_tokens,
            objective=self.objective,
        )
        return generate(spec, SEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The regimes on one engine. note: what to know of its figures."""

    title: str
    note: str
    load: Load
    runs: Sequence[Run]


ON_GPU = Load(rate_per_s=25.0, duration_s=120.0, objective=Objective(ttft_s=1.0, tpot_s=0.05))
ON_CPU = Load(duration_s=30.0, scale=0.08, max_input_tokens=1024, max_output_tokens=256)  # the rest is measured


def demonstrate(tokens: int | None = None, html: Path | None = None) -> None:
    """Print goodput by regime, simulated and served.

    tokens: how many each regime asks of the CPU, about. html: a page to write.
    """
    console = Console(highlight=False)
    panels = [simulated(console)]
    console.print(table_of(panels[0]))
    with local_server("--max-running", str(AT_A_TIME), shown=Console(quiet=True)) as url:
        panels.append(served(console, url, tokens))
    console.print(table_of(panels[1]))
    verdicts = [*map(verdict, panels), DAY_NOTE]
    for line in verdicts:
        console.print(line)
    if html is not None:
        write_page(html, "BurstGPT: one mean rate in four orders of time", sections(panels, verdicts))
        console.print(f"written: {html}")


def simulated(console: Console, load: Load = ON_GPU, model: str = "llama-8b", device: str = "h200") -> Panel:
    """The engine's own scheduler on a virtual clock."""
    setup = Setup(hardware=hardware_of(described(model), device), policies=partial(build_policies, "default"))
    runs = [
        _whole(simulate_with_bar(replace(setup, label=kind.value), partial(load.trace, kind), console))
        for kind in Traffic
    ]
    return Panel(title=f"{model} on one {device}, simulated", note=setup.hardware.cost.describe(), load=load, runs=runs)


def served(console: Console, url: str, tokens: int | None = None, load: Load = ON_CPU) -> Panel:
    """A server that runs, asked over HTTP."""
    sample = replace(load, rate_per_s=2 * PROBE_REQUESTS / load.duration_s).trace(Traffic.STEADY)
    for _ in range(2):  # the first one warms up
        at_once = summarise(_replay(console, url, spaced(sample, PROBE_REQUESTS, 0.0), "at once"))
    alone = summarise(_replay(console, url, spaced(sample, ALONE_REQUESTS, ALONE_EVERY_S), "alone"))
    if alone.ttft is None or alone.tpot is None:
        raise ReplayError(f"the server at {url} answered none of {alone.requests} requests: {alone.outcomes}")
    ttft_s, tpot_s = (round(LIMITS_OVER_ALONE * spread.p50_s, 3) for spread in (alone.ttft, alone.tpot))
    rate_per_s = LOAD_FRAC * at_once.requests_per_s
    duration_s = load.duration_s
    if tokens is not None:
        duration_s = max(SHORTEST_S, tokens / (rate_per_s * load.scale * CHATGPT.outputs.mean))
    load = replace(
        load, rate_per_s=rate_per_s, duration_s=duration_s, objective=Objective(ttft_s=ttft_s, tpot_s=tpot_s)
    )
    runs = [_replay(console, url, exactly(load.trace(kind), load), kind.value) for kind in Traffic]
    return Panel(
        title=f"{runs[0].header.model} on this CPU, over HTTP, {AT_A_TIME} at a time",
        note=f"the rate is {LOAD_FRAC:.0%} of the {at_once.requests_per_s:.1f} requests/s that it answers if all come "
        f"at once, the limits are {LIMITS_OVER_ALONE:g} times the median of requests that come alone",
        load=load,
        runs=runs,
    )


def exactly(trace: Trace, load: Load) -> Trace:
    """The trace, its times stretched to the very rate: how many a short ragged one has scatters by a seventh."""
    n_requests = sum(1 for _ in trace)
    return scale_rate(trace, load.rate_per_s * load.duration_s / n_requests, scales_pauses=True)


def spaced(trace: Trace, n_requests: int, every_s: float) -> Trace:
    """The first requests of a trace, at even times."""
    rows = enumerate(itertools.islice(trace, n_requests))
    header = TraceHeader(name=f"{trace.header.name}, evenly spaced", seed=trace.header.seed)
    return Trace.of(header, (msgspec.structs.replace(row, arrival_s=place * every_s) for place, row in rows))


def _replay(console: Console, url: str, trace: Trace, label: str) -> Run:
    return _whole(asyncio.run(replay_with_bar(trace, ReplayOptions(url=url, label=label, seed=SEED), console)))


def _whole(run: Run) -> Run:
    """An interrupt ends the demonstration: three regimes and a half compare nothing."""
    if not run.header.is_whole:
        raise KeyboardInterrupt
    return run


def table_of(panel: Panel) -> Table:
    """A row per regime."""
    limits, load = panel.load.objective, panel.load
    title = (
        f"{panel.title}: {load.rate_per_s:.1f} requests/s for {load.duration_s:.0f} s, "
        f"limits TTFT {limits.ttft_s:g} s, TPOT {limits.tpot_s:g} s"
    )
    table = Table(title=title, title_justify="left", caption=panel.note, caption_justify="left")
    columns = ("regime", "requests", "mean prompt + answer", "TTFT p50 / p99, ms", "TPOT p50 / p99, ms",
               "goodput, requests/s", "within limits")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "regime" else "right")
    for run in panel.runs:
        summary = summarise(run)
        lengths = np.mean([(record.input_tokens, record.output_tokens) for record in run.records], axis=0)
        table.add_row(
            run.name,
            str(summary.requests),
            "{:.0f} + {:.0f}".format(*lengths),
            *_latencies(summary),
            f"{summary.goodput_per_s:.2f}",
            f"{summary.attainment_frac:.0%}",
        )
    return table


def _latencies(summary: Summary) -> list[str]:
    spreads = (summary.ttft, summary.tpot)
    return ["-" if one is None else f"{ms(one.p50_s)} / {ms(one.p99_s)}" for one in spreads]


def verdict(panel: Panel) -> str:
    """How much more of one rate is within limits when it is steady."""
    goodput = {run.name: summarise(run).goodput_per_s for run in panel.runs}
    steady, bursts = goodput[Traffic.STEADY.value], goodput[Traffic.BURSTS.value]
    ratio = f"{steady / bursts:.1f} times" if bursts > 0 else "infinitely many times"
    return (
        f"{panel.title}: steady traffic has {ratio} the goodput of bursts at its rate ({steady:.2f} and {bursts:.2f})."
    )


def sections(panels: Sequence[Panel], verdicts: Sequence[str]) -> list[Section]:
    """The page: goodput of all, then each engine with its table and its course in time."""
    titles = ["simulated", "this CPU"]
    bars = goodput_figure(titles, [panel.runs for panel in panels], [panel.load.objective for panel in panels])
    parts = [Section(tables=verdicts, figures=(bars,))]
    for panel in panels:
        figures = run_figures(panel.runs, panel.load.objective)
        parts.append(Section(heading=panel.title, tables=[table_of(panel)], figures=figures))
    return parts
