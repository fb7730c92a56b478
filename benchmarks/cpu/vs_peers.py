"""Penstock, OpenVINO GenAI and llama.cpp on one model and one CPU, in one run: tokens per second, ratios, shares.

    python benchmarks/cpu/vs_peers.py --model path/to/Qwen3-0.6B --threads 2 \\
        --openvino int8=exported-int8,int4=exported-int4 --openvino-python venv-openvino/bin/python \\
        --llama q8_0=model-q8_0.gguf,q4_0=model-q4_0.gguf --llama-python venv-llama/bin/python

Every engine runs in a process of its own, under its own interpreter, one after the other, with the same prompts
(`peers/cells.py` says which). An engine without files is left out; one that fails is said to have failed. `--engines`
chooses among them. `--model` may be a shape with random weights (qwen3-0.6b); peers then want files of that shape.

A share is the least time that the machine's limits allow (penstock.bench.bounds), over the time taken. The limits are
measured here, by torch, before the first engine and after the last; each share uses their mean. `others`: cores that
other processes kept busy meanwhile; with more than a few hundredths the figures are no comparison.

Peers' files:
    pip install optimum-intel[openvino] && optimum-cli export openvino -m DIR --weight-format int8 exported-int8
    pip install openvino-genai      # to run them
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
    GGUF files: convert_hf_to_gguf.py and llama-quantize of llama.cpp, or downloaded
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock.bench.bounds import MachineLimits, bound_of
from penstock.bench.limits import measure_limits
from penstock.bench.shapes import SHAPES, folder_of
from penstock.models.read_spec import read_model_spec
from penstock.models.spec import ModelSpec
from penstock.workload.offline import OfflineRequest, OfflineWorkload

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
from cells import CELLS, requests_of  # noqa: E402, what the workers measure

FAR_LIMIT_S = 900  # of one worker
TARGETS = {  # what a row of ours is compared with, by cell
    "prefill": ("openvino int8",),
    "batch16": ("openvino int8", "openvino int4"),
    "decode": ("llama.cpp {like}",),
}
LIKE = {"int8": "q8_0", "int4": "q4_0", "bf16": "bf16"}


@dataclass(frozen=True)
class Row:
    """One engine with one file. weights: int4, int8, or bf16, for its limits."""

    engine: str
    label: str
    weights: str
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.label}"


def files_of(text: str) -> dict[str, str]:
    """label=path, separated by commas."""
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {label: path for label, _, path in pairs}


def weights_of(label: str) -> str:
    return "int4" if "4" in label else "int8" if "8" in label else "bf16"


def rows_of(args: argparse.Namespace) -> list[Row]:
    wanted = set(args.engines.split(","))
    rows = []
    if "penstock" in wanted:
        worker = (sys.executable, str(PEERS / "penstock_worker.py"), args.model)
        rows += [Row("penstock", w, w, (*worker, "--weights", w)) for w in args.weights.split(",")]
    for engine, worker, python, files in (
        ("openvino", "openvino_worker.py", args.openvino_python, args.openvino),
        ("llama.cpp", "llama_cpp_worker.py", args.llama_python, args.llama),
    ):
        if engine in wanted:
            script = str(PEERS / worker)
            rows += [Row(engine, n, weights_of(n), (python, script, path)) for n, path in files_of(files).items()]
    return rows


def run(row: Row, args: argparse.Namespace) -> dict[str, dict[str, object]]:
    """The lines of a worker, by cell; empty if it failed, which is then said on standard error."""
    command = [*row.command, "--threads", str(args.threads), "--repeats", str(args.repeats), "--cells", args.cells]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FAR_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{row.name} did not run: {error}", file=sys.stderr)
        return {}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        print(f"{row.name} failed with exit code {done.returncode}: {last}", file=sys.stderr)
    lines = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return {line["cell"]: line for line in lines}


def mean(a: MachineLimits, b: MachineLimits) -> MachineLimits:
    return MachineLimits(
        read_bytes_per_s=(a.read_bytes_per_s + b.read_bytes_per_s) / 2,
        linear_flop_per_s=(a.linear_flop_per_s + b.linear_flop_per_s) / 2,
        float_flop_per_s=(a.float_flop_per_s + b.float_flop_per_s) / 2,
    )


def limits() -> dict[bool, MachineLimits]:
    """By whether weights are integers."""
    return {
        is_int: measure_limits(torch.device("cpu"), torch.bfloat16, "int8" if is_int else "none")
        for is_int in (False, True)
    }


def most_tok_per_s(cell: str, weights: str, spec: ModelSpec, limit: MachineLimits) -> float:
    """What the machine allows, in the cell's unit."""

    def least_s(requests: Sequence[tuple[list[int], int]]) -> float:
        asked = tuple(OfflineRequest(prompt=tuple(prompt), output_tokens=n) for prompt, n in requests)
        return bound_of(
            spec,
            OfflineWorkload(name=cell, requests=asked),
            limit,
            dtype="bfloat16",
            quantize="none" if weights == "bf16" else weights,
            most_running=len(requests),
            has_prefix_cache=False,
        )

    requests = requests_of(CELLS[cell])
    bound = least_s(requests)
    if cell == "prefill":
        return len(requests[0][0]) / bound.least_s
    if cell == "batch16":
        return sum(n for _, n in requests) / (prompts_s(requests, least_s) + decode_s(requests, least_s))
    return (requests[0][1] - 1) / decode_s(requests, least_s)


def prompts_s(requests, least_s) -> float:  # type: ignore[no-untyped-def]
    """Prompts wait for arithmetic, so their least time is apart from that of the steps behind them."""
    return least_s([(prompt, 1) for prompt, _ in requests]).compute_s


def decode_s(requests, least_s) -> float:  # type: ignore[no-untyped-def]
    first, whole = least_s([(prompt, 1) for prompt, _ in requests]), least_s(requests)
    return max(whole.compute_s - first.compute_s, whole.read_s - first.read_s)


def print_table(found: Mapping[str, Mapping[str, dict[str, object]]], cells: Sequence[str]) -> None:
    head = "".join(f" | {cell} tok/s | share | others" for cell in cells)
    print(f"| engine{head} |\n|{' --- |' * (1 + 3 * len(cells))}")
    for name, by_cell in found.items():
        line = name
        for cell in cells:
            at = by_cell.get(cell)
            line += f" | {at['tok_per_s']:.1f} | {at['share']:.2f} | {at['others']:.2f}" if at else " | - | - | -"
        print(f"| {line} |")


def ratios(found: Mapping[str, Mapping[str, dict[str, object]]], cells: Sequence[str]) -> dict[str, float]:
    """Ours over theirs, for the pairs that `TARGETS` names and this run has."""
    answer = {}
    for name, by_cell in found.items():
        engine, _, label = name.partition(" ")
        if engine != "penstock":
            continue
        for cell in cells:
            for target in TARGETS[cell]:
                other = target.format(like=LIKE[label])
                theirs = found.get(other, {}).get(cell)
                if cell in by_cell and theirs:
                    answer[f"{cell}: {name} / {other}"] = by_cell[cell]["tok_per_s"] / theirs["tok_per_s"]  # type: ignore[operator]
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-0.6b", help="a folder, or a shape with random weights")
    parser.add_argument("--engines", default="penstock,openvino,llama.cpp")
    parser.add_argument("--weights", default="int8,int4,bf16", help="of Penstock")
    parser.add_argument("--openvino", default="", help="label=folder,...")
    parser.add_argument("--openvino-python", default=sys.executable)
    parser.add_argument("--llama", default="", help="label=file.gguf,...")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cells", default=",".join(CELLS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cells = args.cells.split(",")
    with folder_of(args.model) if args.model in SHAPES else contextlib.nullcontext(Path(args.model)) as folder:
        spec = read_model_spec(folder)
    before = limits()
    rows = rows_of(args)
    found = {}
    for row in rows:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        found[row.name] = run(row, args)
    after = limits()
    for row in rows:
        is_integer = row.weights != "bf16"
        limit = mean(before[is_integer], after[is_integer])
        for cell, at in found[row.name].items():
            at["share"] = at["tok_per_s"] / most_tok_per_s(cell, row.weights, spec, limit)  # type: ignore[operator]
    print_table(found, cells)
    compared = ratios(found, cells)
    for pair, ratio in compared.items():
        print(f"{ratio:5.2f}  {pair}")
    machine = mean(before[True], after[True])
    print(
        json.dumps(
            {
                "threads": args.threads,
                "read_gb_per_s": round(machine.read_bytes_per_s / 1e9, 1),
                "int8_gop_per_s": round(machine.linear_flop_per_s / 1e9),
                "bf16_gflop_per_s": round(machine.float_flop_per_s / 1e9),
                "engines": found,
                "ratios": {pair: round(ratio, 3) for pair, ratio in compared.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
