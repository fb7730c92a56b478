"""How true is the simulator? The same trace against a real server and through a simulation, at shares of its capacity.

    python benchmarks/sim/fidelity.py                                        # the bundled model on this CPU
    python benchmarks/sim/fidelity.py --model llama-8b --device cuda --trace AzureLLMInferenceTrace_conv.csv \
        --shares 0.4 0.7 0.9 --requests 2000 --max-running 256 --kv-memory 60GiB \
        --max-input-tokens 8000 --max-output-tokens 1500

Penstock and its server run on the device, on an otherwise idle machine:

1. `penstock profile` measures the model (or --profile gives one).
2. A server starts with a step log. Some requests, one after the other, show what HTTP and text take beside the engine;
   then all requests at once, which gives the capacity, and steps of a busy engine to correct the profile by (whole
   steps, by kind). These are other requests than those that are predicted.
3. At each share of the capacity the trace is replayed against the server, and simulated with the corrected profile.

A shape by name (llama-8b, qwen3-0.6b, ...) gets random weights and the tokenizer of the bundled model; prompts are
token ids, so that does not matter. Prints a table of measured, predicted and error; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from penstock.bench.shapes import SHAPES, folder_of
from penstock.cost.fit import corrected
from penstock.cost.profile import Profile, Sample, read_profile, write_profile
from penstock.hardware import described, device_names, hardware_of
from penstock.options import BUNDLED, DEFAULT_MODEL
from penstock.policy.presets import build_policies
from penstock.runtime.memory_plan import parse_bytes
from penstock.sim.calibrate import Log, load_of
from penstock.sim.run import Setup, fleet_of, run_of
from penstock.workload.commands import load_trace, raise_open_files
from penstock.workload.measure import Summary, summarise
from penstock.workload.progress import replay_with_bar
from penstock.workload.records import Run
from penstock.workload.replay import ReplayOptions
from penstock.workload.trace import Trace, TraceRequest
from penstock.workload.transform import clip, scale_rate, take

PROBES = 12  # single requests
START_S = 600.0
ALL_AT_ONCE = 1e6  # speed at which a trace arrives as one
console = Console(stderr=True, highlight=False)


class Server:
    """`penstock serve` with a step log, on a free port."""

    def __init__(self, options: argparse.Namespace, folder: Path, model_path: str, log: Path) -> None:
        command = [sys.executable, "-m", "penstock.cli", "serve", model_path, "--port", "0", "--step-log", str(log)]
        command += ["--device", options.device, "--max-running", str(options.max_running)]
        command += ["--kv-memory", options.kv_memory, "--served-model-name", options.model]
        command += ["--load-format", "dummy"] * (options.model in SHAPES)
        command += ["--executor", options.executor]
        command += ["--profile", str(options.profile)] if options.profile else []
        command += ["--threads", str(options.threads)] if options.threads else []
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
        self.url, self._lines = "", []  # type: tuple[str, list[str]]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.startswith("{"):
                self._lines.append(line.rstrip())
            found = re.match(r"listening on (\S+)", line)
            if found:
                self.url = found[1]

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                if self.url and urllib.request.urlopen(f"{self.url}/ready", timeout=5).status == 200:
                    return
        raise SystemExit("the server did not start:\n" + "\n".join(self._lines[-20:]))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=120)


@contextlib.contextmanager
def model_folder(name: str) -> Iterator[str]:
    """What `penstock serve` is to load: a shape gets the tokenizer of the bundled model."""
    if name not in SHAPES:
        yield name
        return
    with folder_of(name) as folder:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BUNDLED[DEFAULT_MODEL] / file, folder / file)
        yield str(folder)


def profiled(options: argparse.Namespace, folder: Path) -> Profile:
    if options.profile is not None:
        return read_profile(options.profile)
    out = folder / "profile.json"
    command = [sys.executable, "-m", "penstock.cli", "profile", "--model", options.model, "--device", options.device]
    command += ["--max-running", str(options.max_running), "--out", str(out)]
    command += ["--threads", str(options.threads)] if options.threads else []
    subprocess.run(command, check=True, stdout=sys.stderr)
    return read_profile(out)


def replayed(trace: Trace, server: Server, label: str, seed: int) -> Run:
    """seed: of the prompts; every replay needs its own, for the server caches those of the ones before."""
    run = asyncio.run(replay_with_bar(trace, ReplayOptions(url=server.url, label=label, seed=seed), console))
    bad = [record for record in run.records if not record.is_ok]
    if bad:
        console.print(f"! {len(bad)} of {len(run.records)} requests failed: {bad[0].outcome.value}, {bad[0].error}")
    return run


def front_s(server: Server, trace: Trace, log: Path) -> float:
    """Between client and engine, both ways: what clients wait for the first token longer than the engine says."""
    first = len(Log.read(log).ends) if log.stat().st_size and _has_steps(log) else 0
    waited = [
        replayed(_single(trace, number), server, "probe", -1 - number).records[0].ttft_s for number in range(PROBES)
    ]
    time.sleep(1.0)  # until the log has the last one
    engine = [end.ttft_s for end in list(Log.read(log).ends.values())[first:]]
    pairs = [(mine, its) for mine, its in zip(waited, engine, strict=True) if mine is not None and its is not None]
    return max(0.0, statistics.median(mine - its for mine, its in pairs[2:]))  # the first ones warm everything up


def _has_steps(log: Path) -> bool:
    return b'"type":"step"' in log.read_bytes()


def _single(trace: Trace, number: int) -> Trace:
    return Trace.of(trace.header, [replace(list(take(trace, number + 1))[number], arrival_s=0.0)])


def capacity_per_s(run: Run) -> float:
    """Answers per second while the batch is full: between the first and the last fifth of them."""
    ends_s = sorted(record.end_s for record in run.records if record.is_ok and record.end_s is not None)
    low, high = len(ends_s) // 5, len(ends_s) * 4 // 5
    return (high - low) / (ends_s[high] - ends_s[low])


def served_steps(log: Path) -> list[Sample]:
    found = Log.read(log)
    return [
        Sample(load_of(found.header, step), step.device_s)
        for step in found.steps
        if (step.decode_rows or step.chunks) and not (step.out_blocks or step.in_blocks)
    ]


def simulated(options: argparse.Namespace, trace: Trace, profile: Path, seed: int) -> Run:
    hardware = hardware_of(
        described(options.model), device_names(options.device)[0], max_rows=options.max_running,
        kv_bytes=parse_bytes(options.kv_memory), profile=profile,
    )  # fmt: skip
    setup = Setup(hardware=hardware, policies=build_policies, label="simulated", seed=seed)
    fleet = fleet_of(setup, trace)
    fleet.run(trace)
    return run_of(setup, trace, fleet)


def figures(summary: Summary) -> dict[str, float]:
    """Milliseconds, and tokens per second."""
    assert summary.ttft is not None
    assert summary.tpot is not None
    found = {
        f"{name} {percent}": getattr(spread, f"{percent}_s") * 1e3
        for name, spread in (("TTFT", summary.ttft), ("TPOT", summary.tpot), ("E2E", summary.e2e))
        for percent in ("p50", "p90", "p99")
        if spread is not None
    }
    return {**found, "output tokens/s": summary.output_tokens_per_s}


def show(rows: list[dict[str, Any]], head: str) -> None:
    table = Table(title=head, title_justify="left")
    for column in ("share", "requests/s", "figure", "measured", "predicted", "error"):
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for row in rows:
        for name, measured in row["measured"].items():
            predicted = row["predicted"][name]
            cells = f"{measured:.2f}", f"{predicted:.2f}", f"{predicted / measured - 1:+.1%}"
            table.add_row(f"{row['share']:.0%}", f"{row['requests_per_s']:.2f}", name, *cells)
        table.add_section()
    Console(highlight=False).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled, a shape by name, or a directory")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--executor", default="torch", help="simulated: a server whose steps take predicted time")
    parser.add_argument("--trace", default="steady", help="a file of any known format, or a kind of traffic")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.7, 0.85, 0.9])
    parser.add_argument("--requests", type=int, default=300, help="of each replay, and of the one for the capacity")
    parser.add_argument("--max-input-tokens", type=int, default=1000)
    parser.add_argument("--max-output-tokens", type=int, default=200)
    parser.add_argument("--max-running", type=int, default=32)
    parser.add_argument("--kv-memory", default="256MiB")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--profile", type=Path, default=None, help="instead of measuring one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    raise_open_files()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="penstock-fidelity-") as temporary, model_folder(options.model) as path:
        folder = Path(temporary)
        profile, log = profiled(options, folder), folder / "steps.jsonl"
        made = {"rate_per_s": 1.0, "duration_s": 4.0 * options.requests} if "." not in options.trace else {}
        whole = clip(
            load_trace(options.trace, options.seed, **made),
            max_input_tokens=options.max_input_tokens, max_output_tokens=options.max_output_tokens,
        )  # fmt: skip
        listed = list(take(whole, 2 * options.requests))
        half = len(listed) // 2
        ahead, trace = (Trace.of(whole.header, part) for part in (listed[:half], _from_0(listed[half:])))
        server = Server(options, folder, path, log)
        try:
            server.wait_ready()
            profile = replace(profile, front_s=front_s(server, ahead, log))
            per_s = capacity_per_s(replayed(scale_rate(ahead, ALL_AT_ONCE), server, "capacity", options.seed))
            time.sleep(1.0)
            profile = corrected(profile, served_steps(log))
            write_profile(folder / "corrected.json", profile)
            all_at_once = scale_rate(ahead, ALL_AT_ONCE)
            predicted_per_s = capacity_per_s(simulated(options, all_at_once, folder / "corrected.json", options.seed))
            fracs = f"decode {profile.decode.serving_frac:.2f}, prompts {profile.chunk.serving_frac:.2f}"
            front_ms = profile.front_s * 1e3
            said = f"HTTP and text {front_ms:.1f} ms; steps of the busy engine over single ones: {fracs}"
            console.print(f"capacity {per_s:.2f} requests/s, predicted {predicted_per_s:.2f}; {said}", soft_wrap=True)
            for seed, share in enumerate(options.shares, options.seed + 1):
                load = scale_rate(trace, share * per_s / _rate_per_s(trace))
                measured = summarise(replayed(load, server, f"{share:.0%}", seed))
                predicted = summarise(simulated(options, load, folder / "corrected.json", seed))
                row = {"share": share, "requests_per_s": share * per_s, "lag_p99_ms": _lag_ms(measured)}
                rows.append({**row, "measured": figures(measured), "predicted": figures(predicted)})
        finally:
            server.stop()
        show(rows, f"{options.model} on {profile.hardware}: {half} requests of {options.trace}")
        capacity = {"measured_per_s": per_s, "predicted_per_s": predicted_per_s}
        print(json.dumps({"model": options.model, "hardware": profile.hardware, "capacity": capacity, "rows": rows}))


def _from_0(rows: list[TraceRequest]) -> list[TraceRequest]:
    return [replace(row, arrival_s=row.arrival_s - rows[0].arrival_s) for row in rows]


def _rate_per_s(trace: Trace) -> float:
    arrivals_s = [row.arrival_s for row in trace]
    return (len(arrivals_s) - 1) / (arrivals_s[-1] - arrivals_s[0])


def _lag_ms(summary: Summary) -> float:
    return 0.0 if summary.lag is None else summary.lag.p99_s * 1e3


if __name__ == "__main__":
    main()
