"""Servers under Poisson load over HTTP: completed and useful requests per second, times to and between tokens.

    python benchmarks/gpu/http_load.py --tokenizer-script make_tokenizer.py --client vllm --peer-site DIR
    python benchmarks/gpu/http_load.py --executor simulated --device h200     # no GPU, our own client

Prompts of about 1,024 tokens and answers of about 128 (each up to 80 % more or less), 25 seconds of arrivals for each
rate. A request is useful if its first token came within 1 s and the others within 50 ms each on average. Every server
runs alone: Penstock with the default policies, then with those that keep objectives (`in-time`), then the peer. Random
weights; the tokenizer has as many ids as the model, made by `SCRIPT DIR VOCAB`. Last line: JSON.

--client vllm drives all servers with `vllm bench serve` from --peer-site, --client penstock with `penstock replay` and
the same distributions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

INPUT_TOKENS, OUTPUT_TOKENS, RANGE_RATIO = 1024, 128, 0.8
TTFT_S, TPOT_S = 1.0, 0.05
START_TIMEOUT_S = 300.0
IN_TIME = ("--admit", "in-time", "--set", f"admit.ttft_s={TTFT_S}", "--set", f"admit.tpot_s={TPOT_S}",
           "--set", "batch.budget_tokens=1024")  # fmt: skip
POLICIES = {"default": (), "in-time": IN_TIME}
FIGURES = {
    "done/s": r"Request throughput \(req/s\):\s+([\d.]+)",
    "useful/s": r"Request goodput \(req/s\):\s+([\d.]+)",
    "TTFT p50, ms": r"(?:P50|Median) TTFT \(ms\):\s+([\d.]+)",
    "TTFT p99, ms": r"P99 TTFT \(ms\):\s+([\d.]+)",
    "TPOT p50, ms": r"(?:P50|Median) TPOT \(ms\):\s+([\d.]+)",
    "TPOT p99, ms": r"P99 TPOT \(ms\):\s+([\d.]+)",
}
Row = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    if arguments.write_loads is not None:
        for rate in arguments.rates:
            write_load(arguments.write_loads / f"rate-{rate}.jsonl", rate, arguments.seconds)
        return
    rows: list[Row] = []
    with TemporaryDirectory(prefix="penstock-http-") as work:
        folder = _model_folder(arguments, Path(work))
        for policies in arguments.policies:
            with _server(_our_command(arguments, folder, policies), arguments.port, "/ready"):
                rows += _drive(f"Penstock, {policies}", arguments, folder)
        if arguments.peer_site is not None and not arguments.without_peer:
            command = _peer_command(arguments, folder)
            with _server(command, arguments.port, "/health", _peer_environment(arguments)):
                rows += _drive("peer", arguments, folder)
    _print_table(rows)
    facts = {"model": arguments.model, "executor": arguments.executor, "client": arguments.client}
    print(json.dumps({"benchmark": "http", **facts, "seconds": arguments.seconds, "rows": rows}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-8b")
    parser.add_argument("--rates", nargs="+", type=int, default=[20, 30, 40, 50], help="requests per second")
    parser.add_argument("--seconds", type=int, default=25, help="of arrivals, for each rate")
    parser.add_argument("--policies", nargs="*", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--executor", choices=("torch", "simulated"), default="torch")
    parser.add_argument("--device", default="cuda", help="with --executor simulated the device to predict, as h200")
    parser.add_argument("--serve-options", nargs="*", default=[], help="more options of `penstock serve`")
    parser.add_argument("--tokenizer-script", type=Path, help="needed with --executor torch")
    parser.add_argument("--client", choices=("penstock", "vllm"), default="penstock")
    parser.add_argument("--peer-site", type=Path, help="where vLLM is unpacked")
    parser.add_argument("--without-peer", action="store_true", help="use its client only")
    parser.add_argument("--write-loads", type=Path, help="only write the traces here, for `penstock simulate`")
    parser.add_argument("--port", type=int, default=8123)
    arguments = parser.parse_args()
    needs_tokenizer = arguments.executor == "torch" and arguments.write_loads is None
    if needs_tokenizer and arguments.tokenizer_script is None:
        parser.error("--executor torch needs --tokenizer-script: random weights put out every id of the vocabulary")
    if arguments.client == "vllm" and arguments.peer_site is None:
        parser.error("--client vllm needs --peer-site, where its client is")
    return arguments


# --- servers ----------------------------------------------------------------------------------------------------------
def _model_folder(arguments: argparse.Namespace, work: Path) -> Path:
    """config.json of the shape and, where it is asked for, a tokenizer of its vocabulary."""
    from penstock.bench.shapes import SHAPES

    folder = work / arguments.model
    folder.mkdir()
    config = SHAPES[arguments.model]
    (folder / "config.json").write_text(json.dumps(config))
    if arguments.tokenizer_script is not None:
        command = [sys.executable, str(arguments.tokenizer_script), str(folder), str(config["vocab_size"])]
        subprocess.run(command, check=True)
    return folder


def _our_command(arguments: argparse.Namespace, folder: Path, policies: str) -> list[str]:
    is_simulated = arguments.executor == "simulated"
    what = [arguments.model if is_simulated else str(folder), "--executor", arguments.executor]
    what += [] if is_simulated else ["--load-format", "dummy", "--max-model-tokens", "8192"]
    command = [sys.executable, "-m", "penstock.cli", "serve", *what, "--device", arguments.device]
    names = ["--served-model-name", str(folder), "--port", str(arguments.port), "--max-running", "256"]
    return [*command, *names, *POLICIES[policies], *arguments.serve_options]


def _peer_command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--load-format", "dummy",
        "--max-model-len", "8192", "--gpu-memory-utilization", "0.85", "--port", str(arguments.port),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip


def _peer_environment(arguments: argparse.Namespace) -> dict[str, str]:
    quiet = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PYTHONPATH": str(arguments.peer_site), "TOKENIZERS_PARALLELISM": "false", **quiet}


@contextlib.contextmanager
def _server(command: list[str], port: int, path: str, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Runs until the block ends; its output is shown if it does not get ready."""
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            began_s = time.monotonic()
            while not _answers(f"http://127.0.0.1:{port}{path}"):
                if process.poll() is not None or time.monotonic() - began_s > START_TIMEOUT_S:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(command)} did not get ready:\n{log.read()[-4000:]}")
                time.sleep(0.2)
            print(f"ready after {time.monotonic() - began_s:.1f} s: {' '.join(command)}", file=sys.stderr, flush=True)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


# --- clients ----------------------------------------------------------------------------------------------------------
def _drive(name: str, arguments: argparse.Namespace, folder: Path) -> list[Row]:
    client = _by_vllm if arguments.client == "vllm" else _by_penstock
    rows = []
    for rate in arguments.rates:
        row = {"server": name, "rate": rate, **client(rate, arguments, folder)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def _by_vllm(rate: int, arguments: argparse.Namespace, folder: Path) -> Row:
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai",
        "--base-url", f"http://127.0.0.1:{arguments.port}", "--model", str(folder), "--endpoint", "/v1/completions",
        "--dataset-name", "random", "--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS),
        "--random-range-ratio", str(RANGE_RATIO), "--num-prompts", str(rate * arguments.seconds),
        "--request-rate", str(rate), "--ignore-eos", "--goodput", f"ttft:{1000 * TTFT_S:g}", f"tpot:{1000 * TPOT_S:g}",
        "--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,90,99", "--seed", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=_peer_environment(arguments))
    if done.returncode:
        raise SystemExit(f"the client failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return read_figures(done.stdout)


def read_figures(shown: str) -> Row:
    """The figures that `vllm bench serve` prints; None where it prints none."""
    found = {name: re.search(pattern, shown) for name, pattern in FIGURES.items()}
    return {name: None if match is None else float(match[1]) for name, match in found.items()}


def _by_penstock(rate: int, arguments: argparse.Namespace, folder: Path) -> Row:
    from penstock.bench.shapes import SHAPES

    trace, result = folder.parent / "trace.jsonl", folder.parent / "result.json"
    write_load(trace, rate, arguments.seconds)
    command = [
        sys.executable, "-m", "penstock.cli", "replay", "--trace", str(trace), "--model", str(folder), "--no-progress",
        "--url", f"http://127.0.0.1:{arguments.port}", "--objective", f"ttft={TTFT_S},tpot={TPOT_S}",
        "--vocab-stop", str(SHAPES[arguments.model]["vocab_size"] - 2), "--out", str(result),
    ]  # fmt: skip
    if arguments.executor == "simulated":
        command[command.index("--vocab-stop") + 1] = "4000"  # its texts are those of the bundled model
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the client failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    summary = json.loads(result.read_text())["summary"]
    times = {
        f"{name.upper()} {at}, ms": round(1000 * summary[name][f"{at}_s"], 1)
        for name in ("ttft", "tpot")
        for at in ("p50", "p99")
    }
    useful = round(summary["goodput_per_s"], 2)
    return {"done/s": round(summary["requests_per_s"], 2), "useful/s": useful, **times, "ended": summary["outcomes"]}


def write_load(path: Path, rate: int, seconds: int) -> None:
    """The load of `vllm bench serve --dataset-name random`, as a trace of ours: the distributions, not the draws."""
    from penstock.workload.trace import Trace, TraceHeader, TraceRequest, write_trace

    rng, at_s, rows = random.Random(rate), 0.0, []
    for _ in range(rate * seconds):
        at_s += rng.expovariate(rate)
        lengths = [
            rng.randint(int(mean * (1 - RANGE_RATIO)), int(mean * (1 + RANGE_RATIO)))
            for mean in (INPUT_TOKENS, OUTPUT_TOKENS)
        ]
        rows.append(TraceRequest(arrival_s=at_s, input_tokens=lengths[0], output_tokens=lengths[1]))
    write_trace(path, Trace.of(TraceHeader(name=f"poisson {rate}/s"), rows))


# --- the table --------------------------------------------------------------------------------------------------------
def _print_table(rows: list[Row]) -> None:
    peer = {row["rate"]: row for row in rows if row["server"] == "peer"}
    print(f"\n| server | offered/s | {' | '.join(FIGURES)} |")
    print("| --- " * (2 + len(FIGURES)) + "|")
    for row in rows:
        cells = [_cell(row, name, peer.get(row["rate"])) for name in FIGURES]
        print(f"| {row['server']} | {row['rate']} | {' | '.join(cells)} |")
    if peer:
        print("\nIn brackets: over the peer's figure at the same rate.")


def _cell(row: Row, name: str, peer: Row | None) -> str:
    value = row[name]
    if value is None:
        return ""
    is_compared = peer is not None and peer is not row and peer[name]
    return f"{value:,.1f}" + (f" ({value / peer[name]:.2f})" if is_compared and peer is not None else "")


if __name__ == "__main__":
    main()
