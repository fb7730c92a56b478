"""Penstock on a GPU against the limits of the GPU, and against a peer: all offline workloads, one table.

    python benchmarks/gpu/run.py --models qwen3-0.6b llama-8b --peer-script bench_vllm.py [--quantize fp8]
    python benchmarks/gpu/run.py --models llama-8b --tensor-parallel 2

First the bundled model answers on the CPU, on the GPU kernel by kernel, and through CUDA graphs: the tokens must be the
same. Then each model (random weights, temperature 0.6, ends ignored) runs in a process of its own: start, one round of
short answers that captures what will be needed, then the workloads. The peer's script runs after it, on the same
machine: `SCRIPT MODEL WORKLOAD...`, one JSON line per workload with `what`, `out_tok_s` and `in_tok_s`, as `startup`
with `s`. Without one, ratios are to the figures of `recorded.json`, and the table says so. Last line: JSON.

With --tensor-parallel N, N GPUs run each model together, and the limits are N times those of one; the first check takes
their tokens, too, through CUDA graphs with the sums in them.
`--shared-prefixes` runs everything once more with prefixes read once for all rows (Hydragen), as `MODEL, shared`, and
checks that greedy answers behind one prefix are the same with and without.

Workloads are those of `penstock.workload.offline`, or of a file with `NAMES` and `make(name) -> (prompts, lengths)`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import time
from array import array
from pathlib import Path
from types import ModuleType
from typing import Any

STARTED_S = time.time()
HERE = Path(__file__).parent
TEMPERATURE = 0.6
OPTIONS = {
    "device": "cuda",
    "load_format": "dummy",
    "max_running": 512,
    "max_model_tokens": 8192,
    "policy_options": {"batch": {"budget_tokens": 8192, "long_tokens": 8192}},
}


def main() -> None:
    arguments = _arguments()
    if arguments.one is not None:
        _run_model(arguments.one, arguments)
        return
    limits = _measure_limits(arguments.quantize)
    print(json.dumps(limits), flush=True)
    _check_tokens(arguments.quantize, arguments.tensor_parallel)
    if arguments.shared_prefixes:
        _check_shared_tokens()
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        ours = _lines([sys.executable, __file__, "--one", model, *sys.argv[1:]])
        if arguments.peer_script is None:
            peer = json.loads((HERE / "recorded.json").read_text())
            peer = {**peer, "figures": peer["figures"].get(model, {})}
        else:
            command = [sys.executable, str(arguments.peer_script), model, *arguments.workloads]
            peer = {"name": "peer", "when": "this run", "figures": {line["what"]: line for line in _lines(command)}}
        rows += [_row(model, line, peer["figures"], limits, arguments.tensor_parallel) for line in ours]
        if arguments.shared_prefixes:
            again = _lines([sys.executable, __file__, "--one", model, "--sharing", "on", *sys.argv[1:]])
            name = f"{model}, shared"
            rows += [_row(name, line, peer["figures"], limits, arguments.tensor_parallel) for line in again]
    _print_table(rows, f"{peer['name']}, {peer['when']}")
    print(
        json.dumps(
            {"benchmark": "gpu", **limits, "gpus": arguments.tensor_parallel, "peer": peer["when"], "rows": rows}
        )
    )


def _arguments() -> argparse.Namespace:
    from penstock.workload.offline import OFFLINE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "llama-8b", "qwen3-30b-a3b"])
    parser.add_argument("--workloads", nargs="+", default=list(OFFLINE))
    parser.add_argument("--workload-file", type=Path)
    parser.add_argument("--peer-script", type=Path)
    parser.add_argument("--kv-memory", default="40GiB", help="of all GPUs")
    parser.add_argument("--compile-ahead", action="store_true", help="compile kernels beside the start")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs that run each model together")
    parser.add_argument("--quantize", default="none", help="none, fp8, int8 or int4")
    parser.add_argument("--shared-prefixes", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--sharing", default="off", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- one model, in a process of its own ---------------------------------------------------------------------------
def _run_model(model: str, arguments: argparse.Namespace) -> None:
    from penstock.bench.shapes import folder_of

    with folder_of(model) as folder:
        names = ("kv_memory", "compile_ahead", "tensor_parallel", "quantize")
        asked = {name: getattr(arguments, name) for name in names}
        engine = _engine(model=str(folder), shared_prefix_attention=arguments.sharing, **asked, **OPTIONS)
        _generate(engine, [[7] * 64], [1])
        print(json.dumps({"what": "startup", "s": round(time.time() - STARTED_S, 2)}), flush=True)
        _warm_up(engine)
        make = _workloads(arguments.workload_file)
        for name in arguments.workloads:
            prompts, lengths = make(name)
            if name.startswith("shared"):
                _warm_up_shared(engine, prompts)
            began_s = time.perf_counter()
            outputs = _generate(engine, prompts, lengths)
            seconds = time.perf_counter() - began_s
            assert [len(tokens) for tokens in outputs] == lengths
            line = _line(model, name, prompts, lengths, seconds, arguments.quantize)
            counters = engine.counters()
            keys = {key: counters[f"decode_{key}_total"] for key in ("keys_read", "keys_saved")}  # of all so far
            print(json.dumps(line | keys), flush=True)
            is_expected = arguments.sharing == "on" and name.startswith("shared")
            assert keys["keys_saved"] or not is_expected, "nothing was shared: the rule or the tree is wrong"
        engine.close()


def _warm_up_shared(engine: Any, prompts: list[list[int]]) -> None:
    """The prefix is warm for every engine, and steps of as many rows behind it have run: other suffixes, 4 tokens."""
    _generate(engine, prompts[:1], [1])
    n_shared = next((n for n, (a, b) in enumerate(zip(*prompts[:2], strict=True)) if a != b), 0)
    others = [[*prompt[:n_shared], *reversed(prompt[n_shared:])] for prompt in prompts]
    _generate(engine, others, [4] * len(others))


def _line(
    model: str, name: str, prompts: list[list[int]], lengths: list[int], seconds: float, quantize: str
) -> dict[str, Any]:
    """Rates, and the least bytes and multiply-adds that the workload takes."""
    from penstock.bench.bounds import MachineLimits, bound_of
    from penstock.bench.shapes import folder_of
    from penstock.models.read_spec import read_model_spec
    from penstock.workload.offline import OFFLINE, OfflineRequest, OfflineWorkload

    requests = tuple(OfflineRequest(prompt=tuple(p), output_tokens=n) for p, n in zip(prompts, lengths, strict=True))
    shared_tokens = OFFLINE[name].shared_tokens if name in OFFLINE else 0
    workload = OfflineWorkload(name=name, requests=requests, shared_tokens=shared_tokens)
    unit = MachineLimits(read_bytes_per_s=1.0, linear_flop_per_s=1.0, float_flop_per_s=1.0)
    with folder_of(model) as folder:
        spec = read_model_spec(folder)
    bound = bound_of(
        spec, workload, unit, dtype="bfloat16", quantize=quantize, device_type="cuda",
        most_running=OPTIONS["max_running"], has_prefix_cache=True,
    )  # fmt: skip
    return {
        "what": name,
        "s": round(seconds, 3),
        "out_tok_s": round(sum(lengths) / seconds, 1),
        "in_tok_s": round(sum(map(len, prompts)) / seconds, 1),
        "least_read_bytes": bound.read_s,
        "least_flop": bound.compute_s,
    }


def _engine(**options: Any) -> Any:
    from penstock.launch import make_engine
    from penstock.llm import unbounded
    from penstock.options import make_options

    return make_engine(unbounded(make_options(options)))


def _generate(
    engine: Any, prompts: list[list[int]], lengths: list[int], temperature: float = TEMPERATURE
) -> list[list[int]]:
    """The tokens of each prompt, in order."""
    from penstock.core.request import Request, SamplingParams

    outputs: dict[str, list[int]] = {f"r{index}": [] for index in range(len(prompts))}
    for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        sampling = SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=length)
        request = Request(id=f"r{index}", prompt=array("i", prompt), sampling=sampling, arrival_s=0.0, seed=index)
        engine.add(request, age_s=0.0)
    while engine.has_work:
        for update in engine.step():
            outputs[update.request_id] += update.tokens
    for update in engine.take_updates():
        outputs[update.request_id] += update.tokens
    return list(outputs.values())


def _warm_up(engine: Any) -> None:
    """Batches of every size from 512 rows down to 1, prompts alone and beside decoding: little is compiled later."""
    rng = random.Random(0)
    for n_rows, prompt_tokens in ((512, 60), (2, 4096), (64, 500)):
        prompts = [[rng.randrange(10_000) for _ in range(prompt_tokens)] for _ in range(n_rows)]
        _generate(engine, prompts, [2 + index // 2 for index in range(n_rows)])


def _workloads(path: Path | None) -> Any:
    if path is not None:
        spec = importlib.util.spec_from_file_location("workloads", path)
        assert spec is not None
        assert spec.loader is not None
        module = ModuleType("workloads")
        spec.loader.exec_module(module)
        return module.make
    from penstock.workload.offline import make_offline

    def make(name: str) -> tuple[list[list[int]], list[int]]:
        requests = make_offline(name).requests
        return [list(request.prompt) for request in requests], [request.output_tokens for request in requests]

    return make


# --- around it ------------------------------------------------------------------------------------------------------
def _check_tokens(quantize: str, n_gpus: int) -> None:
    """Greedy answers of the bundled model: CPU, GPU kernel by kernel, CUDA graphs, and those of several GPUs.

    Rounded weights: the two of one GPU. A CPU rounds activations otherwise, several GPUs their shares of the weights;
    `benchmarks/accuracy/perplexity.py --device cuda` says how far it goes.
    """
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 4000) for _ in range(rng.randint(1, 120))] for _ in range(24)]
    lengths = [rng.randint(1, 40) for _ in prompts]
    answers = {}
    ways = [("cpu", False, 1), ("cuda", False, 1), ("cuda", True, 1)] + ([("cuda", True, n_gpus)] if n_gpus > 1 else [])
    dtype, ways = ("float32", ways) if quantize == "none" else ("bfloat16", ways[1:3])
    for device, is_capturing, n_ranks in ways:
        engine = _engine(
            model="penstock-tiny", device=device, dtype=dtype, kv_memory="256MiB", quantize=quantize,
            tensor_parallel=n_ranks,
        )  # fmt: skip
        if device == "cuda" and n_ranks == 1:
            engine._executor._step.tape.is_on = is_capturing
        answers[device, is_capturing, n_ranks] = _generate(engine, prompts, lengths, temperature=0.0)
        engine.close()
    first = answers[ways[0]]
    for (device, is_capturing, n_ranks), found in answers.items():
        same = sum(a == b for a, b in zip(found, first, strict=True))
        how = f"{n_ranks} x {device}{', captured' if is_capturing else ''}"
        print(f"tokens, {how}: {same} of {len(first)} answers as {ways[0][0]}")
        assert same == len(first), "the GPU's tokens differ: no time is worth anything"


def _check_shared_tokens() -> None:
    """Greedy answers of the bundled model behind a tree of prefixes, float32: with and without, captured and not."""
    rng = random.Random(2)
    root, *middle = ([rng.randrange(3, 4000) for _ in range(n)] for n in (900, 300, 300, 300))
    prompts = [root + middle[k % 3] + [rng.randrange(3, 4000) for _ in range(1 + k % 7)] for k in range(48)]
    answers, saved = {}, {}
    for sharing, is_capturing in (("off", True), ("on", False), ("on", True)):
        engine = _engine(
            model="penstock-tiny", device="cuda", dtype="float32", kv_memory="256MiB", shared_prefix_attention=sharing
        )
        engine._executor._step.tape.is_on = is_capturing
        _generate(engine, prompts[:3], [1] * 3)  # the prefixes are warm
        answers[sharing, is_capturing] = _generate(engine, prompts, [40] * len(prompts), temperature=0.0)
        saved[sharing] = engine.counters()["decode_keys_saved_total"]
        engine.close()
    first = answers["off", True]
    for how, found in answers.items():
        same = sum(a == b for a, b in zip(found, first, strict=True))
        print(f"tokens, shared prefixes {how[0]}{', captured' if how[1] else ''}: {same} of {len(first)} as without")
        assert same == len(first), "the tokens differ: no time is worth anything"
    assert saved["on"] > 0, "nothing was shared: the rule or the tree is wrong"


def _measure_limits(quantize: str) -> dict[str, Any]:
    """matmul: of bfloat16, or of fp8 if weights are, whose products are then as fast as the library's."""
    import torch
    from triton.testing import do_bench

    from penstock.bench.limits import measure_limits

    numbers = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(numbers)
    copy_ms = do_bench(lambda: other.copy_(numbers), return_mode="median")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul_tflop_s = 2 * 8192**3 / do_bench(lambda: a @ b, return_mode="median") / 1e9
    if quantize == "fp8":
        matmul_tflop_s = measure_limits(a.device, a.dtype, quantize).linear_flop_per_s / 1e12
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_tb_s": round(2 * 2**32 / copy_ms / 1e9, 2),
        "weights": quantize,
        "matmul_tflop_s": round(matmul_tflop_s, 1),
    }


def _lines(command: list[str]) -> list[dict[str, Any]]:
    """The JSON lines that a command prints, shown as they come."""
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                print(line, end="", flush=True)
                found.append(json.loads(line))
    assert process.returncode == 0, f"{' '.join(command)} ended with {process.returncode}"
    return found


def _row(model: str, line: dict[str, Any], peer: dict[str, Any], limits: dict[str, Any], n_gpus: int) -> dict[str, Any]:
    name, theirs = line["what"], peer.get(line["what"], {})
    if name == "startup":
        ratio = theirs["s"] / line["s"] if theirs else None
        return {"model": model, "what": name, "ours": line["s"], "peer": theirs.get("s"), "ratio": ratio, "share": None}
    key = "in_tok_s" if name == "prefill" else "out_tok_s"
    read_s = line["least_read_bytes"] / limits["copy_tb_s"] / n_gpus / 1e12
    compute_s = line["least_flop"] / limits["matmul_tflop_s"] / n_gpus / 1e12
    return {
        "model": model,
        "what": name,
        "ours": line[key],
        "peer": theirs.get(key),
        "ratio": line[key] / theirs[key] if theirs else None,
        "share": max(read_s, compute_s) / line["s"],
    }


def _print_table(rows: list[dict[str, Any]], peer: str) -> None:
    print(f"\n| model | workload | Penstock | peer ({peer}) | ratio | share of the limit |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        theirs = "" if row["peer"] is None else f"{row['peer']:,.0f}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        ours = f"{row['ours']:.1f} s" if row["what"] == "startup" else f"{row['ours']:,.0f}"
        print(f"| {row['model']} | {row['what']} | {ours} | {theirs} | {ratio} | {share} |")


if __name__ == "__main__":
    main()
