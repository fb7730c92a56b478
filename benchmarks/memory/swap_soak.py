"""Many mixed requests with cancels, forks and swaps: nothing leaks, and memory stays as planned.

    python benchmarks/memory/swap_soak.py --requests 10000 --kv-memory 6MiB --host-kv-memory 64MiB [--device cuda]

Serves the bundled model in this process, 48 requests open where some ten fit: prompts share prefixes, one in four asks
for three samples, some are cancelled at a random moment, and those who yield are swapped or recomputed by estimated
cost. After every step the books of both tiers are audited; at the end every block is back in both. Memory is planned as
what the process holds once the model is loaded and warm, plus both pools, plus a stated constant for kernels that are
compiled later and the workspace of a step. Last line: JSON; exit status 1 if more than 15 % above that was held at any
time, or if a block, a file handle or a thread was left.

On a GPU the memory that counts is the device's: what is in use there once a fifth of the requests are through, and at
the end. Steps that are captured in between take some; more than `DEVICE_GROWTH_BYTES` is a leak.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time

from penstock.launch import KERNEL_CACHES

os.environ |= KERNEL_CACHES  # as the engine process has them, before torch is imported

import psutil
import torch

from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.engine.loop import Engine, build_engine
from penstock.options import BUNDLED
from penstock.policy.presets import build_policies
from penstock.runtime.build import build_executor
from penstock.runtime.memory_plan import MIB, parse_bytes

MOST_OPEN = 48
ALLOWED = 1.15
WORKSPACE_BYTES = 96 * MIB
DEVICE_GROWTH_BYTES = 512 * MIB


def make_engine(options: argparse.Namespace) -> Engine:
    executor = build_executor(
        BUNDLED["penstock-tiny"],
        kv_memory_bytes=parse_bytes(options.kv_memory),
        host_kv_memory_bytes=parse_bytes(options.host_kv_memory),
        max_rows=32,
        device=options.device,
        torch_threads=options.threads,
    )
    policies = build_policies(options={"preempt": {"swap_below": options.swap_below}})
    return build_engine(executor, executor.n_blocks, policies, n_host_blocks=executor.n_host_blocks)


def make_request(k: int, rng: random.Random) -> Request:
    family = [3 + rng.randrange(12)] * rng.choice([0, 32, 128, 320])
    prompt = family + [rng.randrange(3, 4096) for _ in range(rng.randint(1, 48))]
    sampling = SamplingParams(
        max_tokens=rng.choice([4, 4, 12, 32]),
        temperature=rng.choice([0.0, 1.0]),
        n=rng.choice([1, 1, 1, 3]),
        logprobs=rng.choice([None, None, 2]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        ignore_eos=True,
    )
    return Request(id=f"r{k}", prompt=prompt, sampling=sampling, arrival_s=time.monotonic())  # type: ignore[arg-type]


def device_bytes() -> int:
    """In use on the GPU, by whomever."""
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def soak(engine: Engine, first: int, stop: int, rng: random.Random, process: psutil.Process) -> int:
    """Serve requests [first, stop); the most bytes that were resident."""
    open_ids: list[str] = []
    most_bytes, n_added = 0, first
    while n_added < stop or engine.has_work:
        while n_added < stop and len(open_ids) < MOST_OPEN:
            engine.add(make_request(n_added, rng), age_s=0.0)
            open_ids.append(f"r{n_added}")
            n_added += 1
        if open_ids and rng.random() < 0.02:
            engine.abort(rng.choice(open_ids))
        engine.step()
        engine.scheduler.audit()
        open_ids = [name for name in open_ids if name in engine.scheduler.ledger]
        most_bytes = max(most_bytes, process.memory_info().rss)
    return most_bytes


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kv-memory", default="6MiB")
    parser.add_argument("--host-kv-memory", default="64MiB")
    parser.add_argument("--swap-below", type=float, default=1.0, help="as the option of the policy `cheapest`")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    process, rng = psutil.Process(), random.Random(1)
    engine = make_engine(options)
    start_bytes, start_handles, start_threads = process.memory_info().rss, process.num_fds(), process.num_threads()
    pools_bytes = parse_bytes(options.kv_memory) + parse_bytes(options.host_kv_memory)
    began_s = time.monotonic()
    n_first = options.requests // 5
    most_bytes = soak(engine, 0, n_first, rng, process)
    early_bytes = device_bytes() if torch.cuda.is_available() else 0
    most_bytes = max(most_bytes, soak(engine, n_first, options.requests, rng, process))
    growth_bytes = device_bytes() - early_bytes if torch.cuda.is_available() else 0
    took_s = time.monotonic() - began_s
    counters, memory = dict(engine.counters()), engine.scheduler.memory
    leaked = [pool.total_blocks - pool.available_blocks for pool in memory.pools]
    assert memory.host is not None
    leaked += [host.pool.n_blocks - host.pool.available for host in memory.host.groups]
    ledger = engine.scheduler.ledger
    assert sum(ledger.ended.values()) == ledger.accepted == options.requests
    left = {"handles": process.num_fds() - start_handles, "threads": process.num_threads() - start_threads}
    engine.close()
    planned_bytes = start_bytes + pools_bytes + WORKSPACE_BYTES
    share = most_bytes / planned_bytes
    report = {
        "requests": options.requests,
        "seconds": round(took_s, 1),
        "aborted": ledger.ended[FinishReason.ABORT],
        "preemptions": counters["preemptions_total"],
        "swaps_out": counters["swaps_out_total"],
        "swaps_in": counters["swaps_in_total"],
        "moved_out_mib": round(counters["host_moved_out_bytes_total"] / MIB),
        "moved_in_mib": round(counters["host_moved_in_bytes_total"] / MIB),
        "spilled_blocks": counters["host_spilled_blocks_total"],
        "host_hit_tokens": counters["host_hit_tokens_total"],
        "hit_tokens": counters["prefix_hit_tokens_total"],
        "blocks_leaked": sum(leaked),
        "left": left,
        "planned_mib": round(planned_bytes / MIB),
        "most_resident_mib": round(most_bytes / MIB),
        "share_of_plan": round(share, 3),
        "device_growth_mib": round(growth_bytes / MIB),
    }
    print(json.dumps(report))
    is_over = share > ALLOWED if options.device == "cpu" else growth_bytes > DEVICE_GROWTH_BYTES
    return int(is_over or bool(sum(leaked)) or any(count > 0 for count in left.values()))


if __name__ == "__main__":
    sys.exit(main())
