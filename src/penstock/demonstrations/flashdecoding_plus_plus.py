"""FlashDecoding++ (arXiv 2311.01282) on this CPU: a maximum fixed beforehand in attention, and linear layers by table.

On and off take turns within one run, and the table is judged by timings that it was not made from. What the paper gains
on GPUs is not what a CPU has to lose: here a part of the keys is not merged with others, so a fixed maximum only saves
the comparisons and scalings within a row.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from penstock.core.request import SamplingParams
from penstock.kernel_commands import load_plain, spans
from penstock.llm import LLM
from penstock.ops import native
from penstock.ops.activation import Activation
from penstock.ops.check import make_batch
from penstock.ops.dispatch import ALWAYS, Cuts, Timing, choose_cuts
from penstock.ops.packed import DENSE_FORMATS, pack
from penstock.ops.paged_attention import paged_attention
from penstock.ops.tuned import names_on
from penstock.ops.unified_attention import unified_attention
from penstock.ops.unified_attention.fallbacks import Fallbacks
from penstock.ops.unified_max import UnifiedMax, bounds
from penstock.options import EngineOptions
from penstock.runtime.calibrate import CalibrationFile, checkpoint_key, path_of, record, write_calibration
from penstock.runtime.kernel_table import Shape, key_of, write_cuts
from penstock.runtime.measure_kernels import Weights, measure, weights_of
from penstock.softmax_commands import calibration_prompts

CPU = torch.device("cpu")
ATTENTIONS = {"bundled model": (4, 2, 64), "Qwen3-0.6B": (16, 8, 128)}  # query heads, KV heads, head dim
BATCHES = ((1, 1024), (8, 1024), (8, 4096), (32, 1024))  # rows, keys of each
PAIRS, LEAST_PAIR_S = 11, 0.02
LAYERS = {  # (outputs, inputs) of qkv, out, gate and up, down
    "bundled model": ((512, 256), (256, 256), (1536, 256), (256, 768)),
    "Qwen3-0.6B": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
}
GATED, ENTERED = 2, (0, 2)  # places in a layer: behind which the activation stands, before which the norm does
N_COPIES = 4  # layers, so that weights are not always those that were just read
ROWS = (1, 2, 4, 8, 16, 32, 64)
ANSWER_TOKENS = 100


def demonstrate(tokens: int | None = None) -> None:
    """Print what attention, linear layers and greedy answers are with each part of the method on and off."""
    console = Console(highlight=False)
    torch.set_num_threads(1)
    console.print(f"CPU kernels: {native.prepare().reason}; one thread, CPU time")
    show_attention(console)
    for name in LAYERS:
        show_layer(console, name, is_native=False)
        if native.core("packed_linear") is not None:
            show_layer(console, name, is_native=True)
    show_answers(console, tokens or ANSWER_TOKENS)


# --- attention ---
def show_attention(console: Console) -> None:
    if unified_attention.on(CPU) == "reference":
        console.print("A fixed maximum has no kernel on this CPU: its softmax stays exact.")
        return
    table = Table(title="Attention of decoding rows, bfloat16: its own maximum / a fixed one", title_justify="left")
    for column in (
        "heads of",
        "rows",
        "keys",
        "own maximum, us",
        "fixed, us",
        "own / fixed",
        "if all fall back",
    ):
        table.add_column(column, justify="left" if column == "heads of" else "right")
    ratios = []
    for name, heads in ATTENTIONS.items():
        for rows, keys in BATCHES:
            own_s, fixed_s, ratio, worst_ratio = compare_attention(*heads, rows, keys)
            ratios.append(ratio)
            times = f"{own_s * 1e6:.0f}", f"{fixed_s * 1e6:.0f}"
            table.add_row(name, str(rows), str(keys), *times, f"{ratio:.3f}", f"{worst_ratio:.2f}")
    console.print(table)
    console.print(
        f"With a fixed maximum attention is {_mean(ratios):.3f} times as fast on average. Where every row leaves the "
        "bounds, all is computed twice (last column): the runtime gives such a layer up."
    )


def compare_attention(
    heads: int, kv_heads: int, head_dim: int, rows: int, keys: int
) -> tuple[float, float, float, float]:
    """(seconds with the row's own maximum, with a fixed one, the first over the second, the same if all fall back)."""
    generator = torch.Generator().manual_seed(0)
    batch, n_blocks = make_batch([1] * rows, [keys] * rows, 16, generator=generator)
    q = torch.randn(rows, heads, head_dim, generator=generator).to(torch.bfloat16)
    kv = torch.randn(2, n_blocks, 16, kv_heads, head_dim, generator=generator).to(torch.bfloat16)
    low, high = bounds(keys)
    fallbacks, scale = Fallbacks.on(CPU), head_dim**-0.5
    safe, far_off = (UnifiedMax(phi=phi, low=low, high=high) for phi in (3.0, 500.0))

    def own() -> None:
        paged_attention(q, kv, batch, scale)

    def fixed() -> None:
        unified_attention(q, kv, batch, scale, safe, fallbacks)

    def fallen_back() -> None:
        unified_attention(q, kv, batch, scale, far_off, fallbacks)

    own_s, fixed_s = take_turns(own, fixed)
    assert not fallbacks.counts_2[0], "random scores of unit queries and keys lie within the bounds"
    own_again_s, fallen_s = take_turns(own, fallen_back)
    ratio = statistics.median(a / b for a, b in zip(own_s, fixed_s, strict=True))
    worst_ratio = statistics.median(a / b for a, b in zip(own_again_s, fallen_s, strict=True))
    return statistics.median(own_s), statistics.median(fixed_s), ratio, worst_ratio


def take_turns(first: Callable[[], None], second: Callable[[], None]) -> tuple[list[float], list[float]]:
    """CPU seconds of each, measured in pairs, each first in every other pair."""
    began_s = time.process_time()
    first()
    second()
    n_calls = max(1, int(LEAST_PAIR_S / max(1e-6, time.process_time() - began_s)))
    seconds: dict[Callable[[], None], list[float]] = {first: [], second: []}
    for pair in range(PAIRS):
        for call in (first, second) if pair % 2 else (second, first):
            began_s = time.process_time()
            for _ in range(n_calls):
                call()
            seconds[call].append((time.process_time() - began_s) / n_calls)
    return seconds[first], seconds[second]


# --- linear layers ---
def show_layer(console: Console, name: str, *, is_native: bool) -> None:
    """The four matrices of a layer: a table from one round of timings, judged by another round."""
    names = names_on(CPU, is_native)
    weights = layer_weights(name, is_native=is_native)
    cuts = [choose_cuts(list(measure(one, ROWS))) for one in weights]
    timings = [list(measure(one, ROWS)) for one in weights]
    table = Table(title=f"Linear layers of a layer of {name}, bfloat16, {', '.join(names)}", title_justify="left")
    for column in ("rows", "by table, us", *(f"{each} / table" for each in names), "table / best of each"):
        table.add_column(column, justify="right")
    of_singles: list[list[float]] = [[] for _ in names]
    of_best = []
    for at, rows in enumerate(ROWS):
        ours_s = layer_seconds(timings, cuts, at)
        singles_s = [layer_seconds(timings, [always] * len(timings), at) for always in ALWAYS]
        best_s = sum(min(timing[at].medians) for timing in timings)
        ratios = [single_s / ours_s for single_s in singles_s]
        for of_single, ratio in zip(of_singles, ratios, strict=True):
            of_single.append(ratio)
        of_best.append(ours_s / best_s)
        shown = [f"{ratio:.2f}" if math.isfinite(ratio) else "-" for ratio in ratios]
        table.add_row(str(rows), f"{ours_s * 1e6:.0f}", *shown, f"{of_best[-1]:.3f}")
    console.print(table)
    switches = "; ".join(
        f"{one.shape.outputs}x{one.shape.inputs}: "
        + ", ".join(f"{each} {span}" for each, span in zip(names, spans(choice), strict=True) if span != "-")
        for one, choice in zip(weights, cuts, strict=True)
    )
    console.print(f"Rows of each: {switches}")
    means = {each: _mean(found) for each, found in zip(names, of_singles, strict=True) if math.isfinite(max(found))}
    best = min(means, key=lambda each: means[each])
    console.print(
        f"Over 1 to 64 rows the table is {means['library']:.3f} times as fast as the library alone, {means[best]:.3f} "
        f"times as fast as the best single choice ({best}), and takes {_mean(of_best):.3f} times the best of each."
    )


def layer_weights(name: str, *, is_native: bool) -> list[Weights]:
    """Random matrices of the layer's shapes."""
    generator = torch.Generator().manual_seed(0)

    def drawn(outputs: int, inputs: int) -> Tensor:
        weight = (torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).to(torch.bfloat16)
        return pack(weight, DENSE_FORMATS[weight.dtype]) if is_native else weight

    return [
        Weights(
            Shape(*shape, is_gated=place == GATED),
            Activation.SILU if place == GATED else None,
            place in ENTERED,
            tuple(drawn(*shape) for _ in range(N_COPIES)),
        )
        for place, shape in enumerate(LAYERS[name])
    ]


def layer_seconds(timings: Sequence[Sequence[Timing]], cuts: Sequence[Cuts], at: int) -> float:
    """Of all matrices of a layer, for the number of rows at this place."""
    return sum(timing[at].medians[choice.pick(timing[at].rows)] for timing, choice in zip(timings, cuts, strict=True))


# --- answers ---
def show_answers(console: Console, tokens: int) -> None:
    """Greedy answers of the bundled model in float32 with everything on, and with everything off."""
    path = EngineOptions().model_path
    decoder = load_plain(path, "float32", "cpu", "auto", native_kernels=False, threads=1)
    prompts = calibration_prompts(path, None, 256)
    layers = record(decoder, prompts)
    file = CalibrationFile(
        checkpoint=checkpoint_key(path), n_prompts=len(prompts), n_tokens=sum(map(len, prompts)), layers=layers
    )
    write_calibration(path_of(path), file)
    packed = load_plain(path, "float32", "cpu", "auto", native_kernels=True, threads=1)
    is_native = native.core("packed_linear") is not None
    cuts = {one.shape: choose_cuts(list(measure(one, ROWS))) for one in weights_of(packed)}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "kernel-table.json"
        write_cuts(table, key_of(CPU, torch.float32, is_native), names_on(CPU, is_native), cuts)
        on = answers(prompts, tokens, softmax="unified", kernel_table=str(table))
    off = answers(prompts, tokens, softmax="exact", kernel_table="none")
    n_same = sum(a == b for ours, exact in zip(on, off, strict=True) for a, b in zip(ours, exact, strict=True))
    n_all = sum(map(len, off))
    console.print(
        f"Greedy tokens of the bundled model in float32, everything on against off: {n_same} of {n_all} the same"
    )


def answers(prompts: Sequence[list[int]], tokens: int, **options: str) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    shared = {"dtype": "float32", "device": "cpu", "native_kernels": True, "kv_memory": "64MiB", "threads": 1}
    with LLM(None, **shared, **options) as llm:
        outputs = llm.generate(list(prompts), sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))
