"""`LLM.generate` against transformers' `generate` on the same model, prompts and lengths, in one run, on the CPU.

    python benchmarks/offline/vs_transformers.py --requests 48 --threads 1

Greedy; every answer has a length of its own, as users' answers have. transformers runs (a) one request after the other,
(b) in padded batches of 16 that go on until the longest answer is done. Outputs are checked first: in float32 all three
give the same tokens. Times are medians of `--repeats`; last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.options import BUNDLED

MODEL = str(BUNDLED["penstock-tiny"])
BATCH = 16
Tokens = list[list[int]]


def workload(n: int) -> tuple[Tokens, list[int]]:
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 4096) for _ in range(rng.randint(16, 256))] for _ in range(n)]
    return prompts, [rng.randint(16, 128) for _ in range(n)]


def with_transformers(model: torch.nn.Module, prompts: Tokens, lengths: list[int], batch: int) -> Tokens:
    """Padded on the left; each batch runs to its longest answer, and shorter ones are cut."""
    answers: Tokens = []
    for first in range(0, len(prompts), batch):
        group, wanted = prompts[first : first + batch], lengths[first : first + batch]
        width = max(map(len, group))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in group])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in group])
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, max_new_tokens=max(wanted), do_sample=False, eos_token_id=None, pad_token_id=0
        )
        answers += [row[width : width + n].tolist() for row, n in zip(out, wanted, strict=True)]
    return answers


def median_s(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts, lengths = workload(options.requests)
    params = [SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in lengths]
    # Without the prefix cache: a repeat would otherwise find all its prompts in it.
    with LLM(dtype="float32", threads=options.threads, kv_memory="512MiB", prefix_caching=False) as llm:
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

        def penstock() -> Tokens:
            return [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)]

        ours, alone = penstock(), with_transformers(model, prompts, lengths, 1)
        same = sum(a == b for a, b in zip(ours, alone, strict=True))
        print(f"{same} of {len(prompts)} answers are the same tokens as transformers'")
        seconds = {
            "penstock": median_s(penstock, options.repeats),
            "transformers, one by one": median_s(
                lambda: with_transformers(model, prompts, lengths, 1), options.repeats
            ),
            f"transformers, batches of {BATCH}": median_s(
                lambda: with_transformers(model, prompts, lengths, BATCH), options.repeats
            ),
        }
    rates = {name: sum(lengths) / s for name, s in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:32s} {rate:8.0f} output tokens/s   {rates['penstock'] / rate:5.2f}x")
    print(json.dumps({"same": same, **{name: round(rate, 1) for name, rate in rates.items()}}))


if __name__ == "__main__":
    main()
