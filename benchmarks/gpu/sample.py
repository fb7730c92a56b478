"""Sampling with top-k and top-p on one GPU: every implementation, the same tokens first, then the time.

    python benchmarks/gpu/sample.py

Logits are normal, temperature 0.6, top-k 40 and top-p 0.9; times are of a captured graph, as in a decode step. What is
used is `cuda`: many programs per row up to `narrow.MOST_ROWS` rows, one beyond; `halving` is one for any.
Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import torch
from triton.testing import do_bench_cudagraph

from penstock.ops.sample import sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--vocab", type=int, default=151_936)
    arguments = parser.parse_args()
    names = [name for name in sample.implementations if name not in ("cpu", "native")]
    found = []
    print(f"| rows | {' | '.join(f'{name}, us' for name in names)} |")
    print("| --- " * (1 + len(names)) + "|")
    for n_rows in arguments.rows:
        inputs = _inputs(n_rows, arguments.vocab)
        expected = sample.implementations["reference"](*inputs)
        times_us = {}
        for name in names:
            implementation = sample.implementations[name]
            n_same = int((implementation(*inputs) == expected).sum())
            assert n_same == n_rows, f"{name}: {n_same} of {n_rows} tokens are those of the reference"
            call = partial(implementation, *inputs)
            times_us[name] = 1000 * do_bench_cudagraph(call, return_mode="median")
        found.append({"rows": n_rows, **times_us})
        print(f"| {n_rows} | {' | '.join(f'{times_us[name]:,.1f}' for name in names)} |", flush=True)
    device, version = torch.cuda.get_device_name(), torch.__version__
    print(
        json.dumps({"benchmark": "sample", "device": device, "torch": version, "vocab": arguments.vocab, "us": found})
    )


def _inputs(n_rows: int, vocab_size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator("cuda").manual_seed(1)
    logits_NV = 3 * torch.randn(n_rows, vocab_size, device="cuda", generator=generator)

    def filled(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((n_rows,), value, dtype=dtype, device="cuda")

    reals, ints = torch.float32, torch.int64
    seeds_N = torch.arange(n_rows, device="cuda") * 7919
    filters = filled(40, ints), filled(0.9, reals), filled(0.0, reals)
    return logits_NV, filled(0.6, reals), *filters, seeds_N, filled(3, ints)


if __name__ == "__main__":
    main()
