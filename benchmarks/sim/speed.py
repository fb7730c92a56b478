"""How fast the simulator is: one instance on a recorded trace, and a fleet on made traffic.

    python benchmarks/sim/speed.py --trace azure_2023_conv.csv
    python benchmarks/sim/speed.py --instances 64 --requests 1000000 --rate-per-s 320 --jobs 2

Every run is a process of its own: real seconds, processor seconds, and the most memory it held are its own. With
`--jobs` those of its processes are added; the dispatcher goes round then, and everywhere here. `one by one` takes every
step on its own (what a policy without `Steady` gets). Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path

from penstock.hardware import described, hardware_of
from penstock.policy.presets import build_policies
from penstock.sim.jobs import Jobs
from penstock.sim.run import Setup, fleet_of
from penstock.workload.commands import load_trace
from penstock.workload.records import RequestRecord
from penstock.workload.trace import Trace
from penstock.workload.transform import take


@dataclass(frozen=True)
class Run:
    """What is simulated. trace: a file, or a kind of made traffic."""

    name: str
    trace: str
    model: str
    device: str
    instances: int
    requests: int | None
    rate_per_s: float | None
    leaps: bool
    jobs: int = 1
    within_s: float = inf


class Over(Exception):
    """The time that a run may take."""


def ending(within_s: float) -> Callable[[int, float], None]:
    """Raises `Over` after so many real seconds."""
    until_s = time.monotonic() + within_s

    def look(n: int, at_s: float) -> None:
        if time.monotonic() > until_s:
            raise Over

    return look


@dataclass(frozen=True)
class Figures:
    """steps: 0 where several processes took them. simulated_s: from the first arrival to the last end. most_mib:
    resident, at any time; of several processes, as if all had been as large as the largest at once.
    """

    name: str
    requests: int
    steps: int
    simulated_s: float
    real_s: float
    processor_s: float
    most_mib: float


def trace_of(run: Run) -> Trace:
    duration_s = None if run.rate_per_s is None or run.requests is None else 1.1 * run.requests / run.rate_per_s
    trace = load_trace(run.trace, 0, rate_per_s=run.rate_per_s, duration_s=duration_s)
    return trace if run.requests is None else take(trace, run.requests)


def measure(run: Run) -> Figures:
    setup = Setup(
        hardware=hardware_of(described(run.model), run.device), policies=build_policies, n_instances=run.instances,
        dispatch="round-robin",
    )  # fmt: skip
    began_s, began_cpu_s = time.perf_counter(), processor_s()
    records, steps = _in_jobs(setup, run) if run.jobs > 1 else _in_one(setup, run)
    real_s, took_cpu_s = time.perf_counter() - began_s, processor_s() - began_cpu_s
    most_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if run.jobs > 1:
        most_kib += run.jobs * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Figures(
        name=run.name,
        requests=len(records),
        steps=steps,
        simulated_s=max(record.end_s for record in records if record.end_s is not None) - records[0].scheduled_s,
        real_s=real_s,
        processor_s=took_cpu_s,
        most_mib=most_kib / 1024,
    )


def processor_s() -> float:
    """Of this process and of those that it waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


def _in_jobs(setup: Setup, run: Run) -> tuple[list[RequestRecord], int]:
    jobs = Jobs(setup=setup, make_trace=partial(trace_of, run), n_jobs=run.jobs)
    with suppress(Over):
        jobs.run(ending(run.within_s))
    return jobs.records, 0


def _in_one(setup: Setup, run: Run) -> tuple[list[RequestRecord], int]:
    trace = trace_of(run)
    fleet = fleet_of(setup, trace)
    if not run.leaps:
        for instance in fleet.instances:
            instance.engine.steps_one_by_one()
    with suppress(Over):
        fleet.run(trace, ending(run.within_s))
    return fleet.records, int(sum(instance.engine.counters()["steps_total"] for instance in fleet.instances))


def in_a_process(run: Run) -> Figures:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, run).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="for one instance")
    parser.add_argument("--model", default="llama-8b")
    parser.add_argument("--device", default="h200")
    parser.add_argument("--instances", type=int, default=0, help="of a fleet on made traffic; 0: no fleet")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate-per-s", type=float, default=320.0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that simulate the fleet")
    parser.add_argument("--within-s", type=float, default=inf, help="count what the fleet has done by then")
    parser.add_argument("--one-by-one", action="store_true", help="the trace once more, without leaps")
    asked = parser.parse_args()
    runs = []
    if asked.trace is not None:
        same = {"trace": str(asked.trace), "model": asked.model, "device": asked.device}
        for leaps in (True, False)[: 1 + asked.one_by_one]:
            name = asked.trace.stem if leaps else f"{asked.trace.stem}, one by one"
            runs.append(Run(name=name, instances=1, requests=None, rate_per_s=None, leaps=leaps, **same))
    if asked.instances:
        runs.append(
            Run(
                name=f"fleet of {asked.instances}", trace="steady", model=asked.model, device=asked.device,
                instances=asked.instances, requests=asked.requests, rate_per_s=asked.rate_per_s, leaps=True,
                jobs=asked.jobs, within_s=asked.within_s,
            )
        )  # fmt: skip
    figures = []
    print("| run | requests | steps | simulated s | real s | processor s | times real time | us per request | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in runs:
        got = in_a_process(run)
        figures.append(got)
        print(
            f"| {got.name} | {got.requests:,} | {got.steps:,} | {got.simulated_s:,.0f} | {got.real_s:,.1f} | "
            f"{got.processor_s:,.1f} | "
            f"{got.simulated_s / got.real_s:,.0f} | {got.real_s / got.requests * 1e6:,.0f} | {got.most_mib:,.0f} |",
            flush=True,
        )
    print(json.dumps([asdict(got) for got in figures]))


if __name__ == "__main__":
    main()
