"""Speed of the engine on this CPU: prefill, decode alone, 16 sequences at once, as shares of the machine's limits.

    python benchmarks/cpu/speed.py --formats bfloat16,int8,int4

Random weights of the shape of Qwen3-0.6B. The limits are measured in the same run, by torch: bytes read per second
(max over 1 GiB), bfloat16 multiply-adds of two 1024 x 1024 matrices. A decode step cannot beat weights and KV over the
read rate; many tokens cannot beat their multiply-adds (twice that rate for integer weights, as the instructions give).
Each figure is a median. `steal` is the share of the wall time that this process did not get on its threads: on a
machine that others use the wall figures are lower bounds. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import torch

from penstock.core.plan import Chunk, DecodeGroup, Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.ops import native
from penstock.runtime.build import build_executor
from penstock.runtime.executor import TorchExecutor

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
    "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 151643,
    "eos_token_id": 151645, "attention_bias": False,
}  # fmt: skip
LAYER_WEIGHTS = 28 * (1024 * 4096 + 2048 * 1024 + 3 * 1024 * 3072)
PROMPT = 512
SHORT_PROMPT = 128
BLOCK = 16
ROW_BLOCKS = 64


def times(run: Callable[[], object], n: int) -> tuple[float, float]:
    """(median wall seconds, share of two threads' time that the process did not get)."""
    walls, busy = [], []
    for _ in range(n):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        busy.append((time.process_time() - cpu) / walls[-1] / torch.get_num_threads())
    return statistics.median(walls), 1 - statistics.median(busy)


def limits() -> dict[str, float]:
    gib, a = torch.zeros(2**28), torch.randn(1024, 1024).bfloat16()
    read_s, _ = times(lambda: gib.max(), 5)
    mul_s, _ = times(lambda: a @ a, 9)
    return {"read_gb_per_s": gib.nbytes / read_s / 1e9, "bf16_gflop_per_s": 2 * 1024**3 / mul_s / 1e9}


def start(row: int, n_tokens: int) -> RowStart:
    blocks = tuple(range(row * ROW_BLOCKS, (row + 1) * ROW_BLOCKS))
    tokens = array("i", ((7919 * (i + row)) % 150000 for i in range(n_tokens)))
    return RowStart(
        row=row, tokens=tokens, prompt_tokens=n_tokens, computed_tokens=0, blocks=(blocks,),
        sampling=SamplingParams(temperature=0.0), seed=0,
    )  # fmt: skip


def prefill(executor: TorchExecutor, rows: int, n_tokens: int) -> None:
    for row in range(rows):
        chunk = Chunk(row=row, start=0, stop=n_tokens)
        plan = Plan(starts=(start(row, n_tokens),), chunks=(chunk,), sampling_chunks=(0,))
        executor.collect(executor.submit(plan))


def end(executor: TorchExecutor, rows: int) -> None:
    executor.collect(executor.submit(Plan(ends=tuple(range(rows)))))


def measure(folder: str, form: str, repeats: int, steps: int) -> dict[str, float]:
    dtype = form if form in ("float32", "bfloat16") else "bfloat16"
    quantize = form if form.startswith("int") else "none"
    executor = build_executor(
        folder,
        dtype=dtype,
        quantize=quantize,
        native_kernels=True,
        load_format="dummy",
        kv_memory_bytes=4 * 2**30,
        max_rows=16,
    )
    found: dict[str, float] = {"weight_gb": executor.facts.weight_bytes / 1e9}

    def one_prefill() -> None:
        prefill(executor, 1, PROMPT)
        end(executor, 1)

    found["prefill_s"], found["prefill_steal"] = times(one_prefill, repeats)
    for rows in (1, 16):
        prefill(executor, rows, SHORT_PROMPT)
        plan = Plan(decode=DecodeGroup(tuple(range(rows))))
        found[f"step{rows}_s"], found[f"step{rows}_steal"] = times(
            lambda plan=plan: executor.collect(executor.submit(plan)), steps
        )
        end(executor, rows)
    executor.close()
    return found


def shares(found: dict[str, float], limit: dict[str, float], form: str) -> dict[str, float]:
    """Tokens per second, and these over what the limits allow."""
    flops = limit["bf16_gflop_per_s"] * 1e9 * (2 if form.startswith("int") else 0.5 if form == "float32" else 1)
    head = CONFIG["vocab_size"] * CONFIG["hidden_size"]
    read_s = found["weight_gb"] / limit["read_gb_per_s"]
    batch_s = max(read_s, 16 * 2 * (LAYER_WEIGHTS + head) / flops)
    return {
        "prefill_tok_per_s": PROMPT / found["prefill_s"],
        "prefill_share": (2 * PROMPT * LAYER_WEIGHTS / flops) / found["prefill_s"],
        "decode_tok_per_s": 1 / found["step1_s"],
        "decode_share": read_s / found["step1_s"],
        "decode16_tok_per_s": 16 / found["step16_s"],
        "decode16_share": batch_s / found["step16_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="float32,bfloat16,int8,int4")
    parser.add_argument("--repeats", type=int, default=3, help="prefills of each format")
    parser.add_argument("--steps", type=int, default=24, help="decode steps of each batch size")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        for form in args.formats.split(","):
            limit = limits()
            found = measure(folder, form, args.repeats, args.steps)
            row = {"format": form, **limit, **found, **shares(found, limit, form)}
            rows.append({key: value if isinstance(value, str) else round(value, 4) for key, value in row.items()})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps({"kernels": native.state().reason.split(",")[0], "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
