"""Speed of moving blocks between device and host memory, beside steps.

    python benchmarks/memory/move_speed.py --tokens 8192

Moves the state of one long sequence of an 8B shape (32 layers, 8 key-value heads of 128, bfloat16, blocks of 16 tokens)
out and in, with host blocks in a row and scattered, after checking that the bytes come back. The limit beside it is a
plain copy of pinned memory of the same size in the same run; the last figure is what matrix products take while the
bytes move, over what they take alone. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch

from penstock.core.executor import StateKind, StateSpec
from penstock.core.plan import BlockMove, Plan, Toward
from penstock.runtime.movers import Mover

N_LAYERS, BLOCK_TOKENS, KV_HEADS, HEAD_DIM = 32, 16, 8, 128
N_PRODUCTS = 40


def sync(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed_s(work: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """The best of some, after one to warm up."""
    best_s = float("inf")
    for k in range(times + 1):
        sync(device)
        start_s = time.perf_counter()
        work()
        sync(device)
        if k:
            best_s = min(best_s, time.perf_counter() - start_s)
    return best_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n = options.tokens // BLOCK_TOKENS
    shape = 2, 2 * n, BLOCK_TOKENS, KV_HEADS, HEAD_DIM
    block_bytes = N_LAYERS * 2 * BLOCK_TOKENS * KV_HEADS * HEAD_DIM * 2
    layers = tuple(range(N_LAYERS))
    spec = StateSpec(name="kv", kind=StateKind.PAGED, layers=layers, block_tokens=BLOCK_TOKENS, block_bytes=block_bytes)
    pools = [torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in layers]
    mover = Mover((spec,), device)
    mover.use_pools(pools, (2 * n,))
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randperm(2 * n, generator=generator)[:n].tolist()
    hosts = {"in a row": list(range(n)), "scattered": torch.randperm(2 * n, generator=generator)[:n].tolist()}

    def move(to: Sequence[int], toward: Toward) -> float:
        """Queue the moves; the seconds that queueing takes."""
        plan = Plan(moves=tuple(BlockMove(0, block, host, toward) for block, host in zip(blocks, to, strict=True)))
        start_s = time.perf_counter()
        mover.move_out(plan)
        mover.move_in(plan)
        return time.perf_counter() - start_s

    before = [pool[:, blocks].clone() for pool in pools]
    move(hosts["scattered"], Toward.HOST)
    sync(device)
    for pool in pools:
        pool.zero_()
    move(hosts["scattered"], Toward.DEVICE)
    sync(device)
    assert all(torch.equal(pool[:, blocks], was) for pool, was in zip(pools, before, strict=True)), "bytes were lost"

    n_bytes, report = n * block_bytes, {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    plain = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    for name, copy in (("out", lambda: pinned.copy_(plain, True)), ("in", lambda: plain.copy_(pinned, True))):
        toward = Toward.HOST if name == "out" else Toward.DEVICE
        limit = n_bytes / timed_s(copy, device) / 1e9
        report[f"plain copy {name}, GB/s"] = round(limit, 1)
        for how, to in hosts.items():
            speed = n_bytes / timed_s(lambda to=to, toward=toward: move(to, toward), device) / 1e9  # type: ignore[misc]
            report[f"{name}, {how}, GB/s"] = round(speed, 1)
            report[f"{name}, {how}, of the copy"] = round(speed / limit, 2)
    x = torch.randn(8192 if device.type == "cuda" else 512, 8192, dtype=torch.bfloat16, device=device)

    def products() -> None:
        for _ in range(N_PRODUCTS):
            x @ x.T

    alone_s = timed_s(products, device)
    report["queueing, ms"] = round(1e3 * move(hosts["in a row"], Toward.HOST), 1)
    if device.type == "cuda":  # a CPU moves within the step
        start_s = time.perf_counter()
        products()
        done = torch.cuda.Event()
        done.record()
        done.synchronize()
        report["products beside a move, over alone"] = round((time.perf_counter() - start_s) / alone_s, 2)
    sync(device)
    report["gib"] = round(n_bytes / 2**30, 2)
    mover.close()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
