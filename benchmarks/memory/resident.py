"""Resident memory of `penstock serve` through many requests: weights + KV pool + a constant, and no growth.

    python benchmarks/memory/resident.py --requests 2000 --kv-memory 128MiB

Starts a server of its own on a free port, sends mixed requests with 32 in flight (prompts of 8 to 900 tokens, some of
them shared, some cancelled half way), samples the resident size of both processes, and stops the server. The stated
constant is for everything else: two interpreters, torch, the HTTP stack, compiled kernels, the workspace of a step.
Last line: JSON; exit status 1 if more than 15 % above weights + KV + constant was held at any time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import psutil

MIB = 2**20
WEIGHTS = Path(__file__).parents[2] / "src/penstock/bundled/penstock-tiny/model.safetensors"


def start(kv_memory: str) -> tuple[subprocess.Popen[str], str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "serve", "--port", "0", "--kv-memory", kv_memory],
        stderr=subprocess.PIPE,
        text=True,
    )
    url = ""
    assert server.stderr is not None
    for line in server.stderr:
        if line.startswith("listening on "):
            url = line.split()[-1]
        if line.startswith("serving "):
            threading.Thread(target=lambda: [None for _ in server.stderr or ()], daemon=True).start()
            return server, url
    raise SystemExit("the server did not start")


def resident_bytes(server: subprocess.Popen[str]) -> tuple[int, int]:
    """(HTTP process, engine process)."""
    process = psutil.Process(server.pid)
    return process.memory_info().rss, sum(child.memory_info().rss for child in process.children())


async def send(session: aiohttp.ClientSession, url: str, rng: random.Random) -> str:
    shared = [17] * rng.choice([0, 0, 64, 256])
    prompt = shared + [rng.randrange(3, 4096) for _ in range(rng.randint(8, 640))]
    body = {"prompt": prompt, "max_tokens": rng.randint(1, 48), "ignore_eos": True, "stream": True}
    leaves = rng.random() < 0.1
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for _ in answer.content:
            if leaves:
                return "left"
    return "answered"


async def run(url: str, server: subprocess.Popen[str], n: int) -> tuple[dict[str, int], list[tuple[int, int]]]:
    rng = random.Random(0)
    ends: dict[str, int] = {"answered": 0, "left": 0}
    samples = []
    gate = asyncio.Semaphore(32)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:

        async def one() -> None:
            async with gate:
                ends[await send(session, url, rng)] += 1

        for first in range(0, n, 200):
            await asyncio.gather(*(one() for _ in range(min(200, n - first))))
            samples.append(resident_bytes(server))
            front, engine = samples[-1]
            print(f"{first + 200:6d} requests: HTTP {front / MIB:7.1f} MiB, engine {engine / MIB:7.1f} MiB", flush=True)
    return ends, samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--kv-memory", default="128MiB")
    parser.add_argument("--constant-mib", type=int, default=420)
    options = parser.parse_args()
    server, url = start(options.kv_memory)
    try:
        time.sleep(1)
        front, engine = resident_bytes(server)
        weights = WEIGHTS.stat().st_size
        constant = options.constant_mib * MIB
        kv = int(options.kv_memory.removesuffix("MiB")) * MIB
        bound = weights + kv + constant
        print(f"idle: HTTP {front / MIB:.1f} MiB, engine {engine / MIB:.1f} MiB")
        print(f"constant {constant / MIB:.1f} MiB + weights {weights / MIB:.1f} MiB + KV {kv / MIB:.1f} MiB")
        ends, samples = asyncio.run(run(url, server, options.requests))
        most = max(sum(sample) for sample in samples)
        print(
            json.dumps(
                {
                    **ends,
                    "constant_mib": round(constant / MIB, 1),
                    "bound_mib": round(bound / MIB, 1),
                    "most_mib": round(most / MIB, 1),
                    "ratio": round(most / bound, 3),
                    "last_200_grew_mib": round((sum(samples[-1]) - sum(samples[-2])) / MIB, 2),
                }
            )
        )
        if most > 1.15 * bound:
            sys.exit(1)
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    main()
