"""FlashDecoding++ on one GPU: attention with a fixed maximum, linear layers for few rows, and the table of both.

    python benchmarks/gpu/flash.py

First every kernel is held to its reference on the device. Then, cache cold before each call, interleaved:
attention   decoding rows, each with its own maximum against a fixed one: batch, context and heads vary
linear      the four matrices of a layer at 1 to 64 rows: single, flat, library, and flat with rows filled up to 64; and
            the share of the copy bandwidth at which the weights are read
table       cuts from one round of timings, judged by another: against the best of each and the best single choice
tokens      greedy answers of the bundled model in float32, everything on against everything off
What is aimed at (`GOALS`) is printed beside what was found. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

GOALS = {
    "attention, fixed maximum, 1K to 4K": ">= 1.10",
    "attention, fixed maximum, anywhere": ">= 0.98",
    "flat over rows filled up to 64, 8 rows": ">= 1.2",
    "weights read at, of copy bandwidth, 8 rows or less": ">= 0.75",
    "table over best of each": "<= 1.03",
    "best single choice over table": ">= 1.1",
    "tokens the same in float32": "1.0",
}
LAYERS = {  # (outputs, inputs) of qkv, out, gate and up, down
    "llama2-7b": ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)),
    "llama-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "qwen3-0.6b": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
}
GATED, ENTERED = 2, (0, 2)
ROWS = (1, 2, 4, 8, 16, 32, 64)
HEADS = ((32, 8, 128), (32, 32, 128), (16, 8, 128))
BATCHES, CONTEXTS = (1, 4, 16, 32), (1024, 4096, 16384, 65536)
MOST_KV_BYTES = 24 * 2**30
REPEATS = 20


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA device")
    device = torch.device("cuda")
    check_kernels()
    cool = cooler(device)
    limit = copy_bytes_per_s(device)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "copy_bytes_per_s": limit}
    with torch.inference_mode():
        found["attention"] = attention(device, cool)
        found["linear"] = {name: linear(name, device, cool, limit) for name in LAYERS}
        found["table"] = {name: table(name, device) for name in LAYERS}
    found["tokens_same_frac"] = tokens()
    for name, goal in GOALS.items():
        print(f"goal: {name} {goal}")
    print(json.dumps({"benchmark": "gpu-flash", **found}))


def check_kernels() -> None:
    """Raises AssertionError where a kernel and its reference differ on the device."""
    from penstock.ops.check import all_ops, check_kernel
    from penstock.ops.entry_linear.split import NO_GATE, split_linear

    for name in ("paged_attention", "unified_attention", "entry_linear"):
        check_kernel(name, all_ops()[name].implementations["cuda"], "cuda")
    for rows in (1, 8, 13, 64):
        x, weight = (torch.randn(n, 1024, device="cuda", dtype=torch.bfloat16) for n in (rows, 1000))
        out = torch.empty(rows, 1000, device="cuda", dtype=torch.bfloat16)
        split_linear(x, weight, None, NO_GATE, out)
        torch.testing.assert_close(out, torch.nn.functional.linear(x, weight), atol=0.5, rtol=2e-2)
    print("kernels answer as their references", flush=True)


def cooler(device: torch.device) -> Callable[[], None]:
    size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(size, dtype=torch.int8, device=device)

    def fill() -> None:
        buffer.zero_()

    return fill


def seconds_of(calls: Sequence[Callable[[], object]], cool: Callable[[], None]) -> list[float]:
    """The median of each, taking turns."""
    for call in calls:
        call()
    pairs: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for call, of_call in zip(calls, pairs, strict=True):
            cool()
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            call()
            events[1].record()
            of_call.append(events)
    torch.cuda.synchronize()
    return [statistics.median(a.elapsed_time(b) for a, b in of_call) / 1e3 for of_call in pairs]


def copy_bytes_per_s(device: torch.device) -> float:
    source = torch.empty(2**30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    (seconds,) = seconds_of([lambda: target.copy_(source)], lambda: None)
    return 2 * 2**30 / seconds


def attention(device: torch.device, cool: Callable[[], None]) -> list[dict[str, Any]]:
    from penstock.ops.check import make_batch
    from penstock.ops.paged_attention import paged_attention
    from penstock.ops.unified_attention import unified_attention
    from penstock.ops.unified_attention.fallbacks import Fallbacks
    from penstock.ops.unified_max import UnifiedMax, bounds

    rows = []
    print("attention: heads, batch, context, own maximum us, fixed us, own / fixed, all again own / fixed", flush=True)
    for heads, kv_heads, head_dim in HEADS:
        for batch_rows in BATCHES:
            for context in CONTEXTS:
                if 4 * batch_rows * context * kv_heads * head_dim > MOST_KV_BYTES:
                    continue
                generator = torch.Generator().manual_seed(0)
                batch, n_blocks = make_batch([1] * batch_rows, [context] * batch_rows, 16, generator=generator,
                                             device="cuda")  # fmt: skip
                q = torch.randn(batch_rows, heads, head_dim, device=device, dtype=torch.bfloat16)
                kv = torch.randn(2, n_blocks, 16, kv_heads, head_dim, device=device, dtype=torch.bfloat16)
                low, high = bounds(context)
                safe, far = (UnifiedMax(phi=phi, low=low, high=high) for phi in (3.0, 500.0))
                fallbacks, scale = Fallbacks.on(device), head_dim**-0.5
                args = q, kv, batch, scale

                def own(args: Any = args) -> object:
                    return paged_attention(*args)

                def fixed(args: Any = args, safe: UnifiedMax = safe, fallbacks: Fallbacks = fallbacks) -> object:
                    return unified_attention(*args, safe, fallbacks)

                def again(args: Any = args, far: UnifiedMax = far) -> object:
                    return unified_attention(*args, far, Fallbacks.on(device))

                own_s, fixed_s, again_s = seconds_of([own, fixed, again], cool)
                row = {
                    "heads": heads, "kv_heads": kv_heads, "batch": batch_rows, "context": context,
                    "own_us": own_s * 1e6, "fixed_us": fixed_s * 1e6, "ratio": own_s / fixed_s,
                    "again_ratio": own_s / again_s, "fallbacks": fallbacks.counts_2.tolist(),
                }  # fmt: skip
                rows.append(row)
                print(f"{heads}/{kv_heads} {batch_rows:3d} {context:6d} {own_s * 1e6:8.1f} {fixed_s * 1e6:8.1f} "
                      f"{row['ratio']:.3f} {row['again_ratio']:.2f}", flush=True)  # fmt: skip
    return rows


def linear(name: str, device: torch.device, cool: Callable[[], None], limit: float) -> list[dict[str, Any]]:
    from penstock.ops.dispatch import ALWAYS
    from penstock.ops.entry_linear import entry_linear
    from penstock.ops.entry_linear.split import NO_GATE, processors, split_linear
    from penstock.ops.entry_linear.tiling import Tiling, tiling_of
    from penstock.ops.tuned import GPU_NAMES, MOST_SINGLE_ROWS, TunedWeight

    rows = []
    print(f"linear, {name}: weights, rows, us of {', '.join(GPU_NAMES)}, filled up to 64; share of copy bandwidth")
    for outputs, inputs in LAYERS[name]:
        weight = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16) * inputs**-0.5
        for n_rows in ROWS:
            x = torch.randn(n_rows, inputs, device=device, dtype=torch.bfloat16)
            out = torch.empty(n_rows, outputs, device=device, dtype=torch.bfloat16)
            fitting = tiling_of(n_rows, outputs, inputs, processors(device))
            filled = Tiling(64, fitting.block_outputs, fitting.parts)
            names = [each for each in GPU_NAMES if each != "single" or n_rows <= MOST_SINGLE_ROWS]
            forms = [TunedWeight(weight, None, ALWAYS[GPU_NAMES.index(each)]) for each in names]
            calls = [lambda form=form, x=x: entry_linear(x, form) for form in forms]
            calls.append(lambda x=x, out=out, filled=filled, w=weight: split_linear(x, w, None, NO_GATE, out, filled))
            us = {each: s * 1e6 for each, s in zip([*names, "filled"], seconds_of(calls, cool), strict=True)}
            share = weight.nbytes / min(us.values()) * 1e6 / limit
            rows.append({"outputs": outputs, "inputs": inputs, "rows": n_rows, "us": us, "share": share})
            shown = " ".join(f"{each} {value:.1f}" for each, value in us.items())
            print(f"{outputs}x{inputs} {n_rows:3d} {shown} {share:.2f}", flush=True)
    return rows


def table(name: str, device: torch.device) -> dict[str, Any]:
    """Cuts from one round, judged by a second; geometric means over 1 to 64 rows, all matrices of a layer together."""
    from penstock.ops.activation import Activation
    from penstock.ops.dispatch import ALWAYS, choose_cuts
    from penstock.runtime.kernel_table import Shape
    from penstock.runtime.measure_kernels import Weights, measure

    weights = [
        Weights(
            Shape(*shape, is_gated=place == GATED),
            Activation.SILU if place == GATED else None,
            place in ENTERED,
            tuple(torch.randn(shape, device=device, dtype=torch.bfloat16) * shape[1] ** -0.5 for _ in range(4)),
        )
        for place, shape in enumerate(LAYERS[name])
    ]
    cuts = [choose_cuts(list(measure(one, ROWS))) for one in weights]
    timings = [list(measure(one, ROWS)) for one in weights]

    def layer_s(choices: Sequence[Any], at: int) -> float:
        return sum(timing[at].medians[c.pick(ROWS[at])] for timing, c in zip(timings, choices, strict=True))

    def mean(values: Sequence[float]) -> float:
        return math.exp(statistics.fmean(map(math.log, values)))

    ours = [layer_s(cuts, at) for at in range(len(ROWS))]
    best = [sum(min(timing[at].medians) for timing in timings) for at in range(len(ROWS))]
    singles = [[layer_s([always] * 4, at) for at in range(len(ROWS))] for always in ALWAYS[1:]]
    found = {
        "cuts": {f"{one.shape.outputs}x{one.shape.inputs}": [c.second_from, c.third_from]
                 for one, c in zip(weights, cuts, strict=True)},
        "over_best_of_each": mean([a / b for a, b in zip(ours, best, strict=True)]),
        "best_single_over_table": min(mean([s / a for s, a in zip(single, ours, strict=True)]) for single in singles),
    }  # fmt: skip
    print(f"table, {name}: {found}", flush=True)
    return found


def tokens() -> float:
    """Share of greedy tokens that are the same with a kernel table and a fixed maximum as without."""
    from penstock import LLM, SamplingParams
    from penstock.kernel_commands import load_plain
    from penstock.ops.dispatch import choose_cuts
    from penstock.ops.tuned import GPU_NAMES
    from penstock.options import EngineOptions
    from penstock.runtime.calibrate import CalibrationFile, checkpoint_key, path_of, record, write_calibration
    from penstock.runtime.kernel_table import key_of, write_cuts
    from penstock.runtime.measure_kernels import measure, weights_of
    from penstock.softmax_commands import calibration_prompts

    path = EngineOptions().model_path
    decoder = load_plain(path, "float32", "cuda", "auto", native_kernels=False, threads=None)
    prompts = calibration_prompts(path, None, 256)
    layers = record(decoder, prompts)
    n_tokens = sum(map(len, prompts))
    file = CalibrationFile(checkpoint=checkpoint_key(path), n_prompts=len(prompts), n_tokens=n_tokens, layers=layers)
    write_calibration(path_of(path), file)
    cuts = {one.shape: choose_cuts(list(measure(one, ROWS))) for one in weights_of(decoder)}
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "kernel-table.json"
        write_cuts(where, key_of(decoder.device, torch.float32, False), GPU_NAMES, cuts)
        for options in (
            {"softmax": "unified", "kernel_table": str(where)},
            {"softmax": "exact", "kernel_table": "none"},
        ):
            with LLM(None, dtype="float32", device="cuda", kv_memory="1GiB", **options) as llm:
                sampling = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
                outputs = llm.generate(prompts, sampling, use_tqdm=False)
            answers.append([token for output in outputs for token in output.outputs[0].token_ids])
    same = sum(a == b for a, b in zip(*answers, strict=True)) / len(answers[0])
    print(f"tokens: {same:.4f} of {len(answers[0])} the same in float32", flush=True)
    return same


if __name__ == "__main__":
    main()
