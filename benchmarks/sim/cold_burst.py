"""What prompts that come at once and share a prefix gain by waiting for the one that computes it; on a virtual clock.

    python benchmarks/sim/cold_burst.py --model llama-8b --device h200
    python benchmarks/sim/cold_burst.py --write-trace burst.jsonl --prompts 256
    penstock simulate --trace burst.jsonl --set admit.follow=false

`others` prompts of `--other-tokens`, which share nothing, come behind them at the same time. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from penstock.hardware import described, hardware_of
from penstock.policy.presets import build_policies
from penstock.sim.run import Setup, fleet_of
from penstock.workload.trace import Trace, TraceHeader, TraceRequest, write_trace

BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Burst:
    """prompts: how many share the first `shared_tokens`, and have `own_tokens` of their own."""

    prompts: int
    shared_tokens: int
    own_tokens: int
    answer_tokens: int
    others: int
    other_tokens: int

    def requests(self) -> Iterator[TraceRequest]:
        fresh = iter(range(10**9))  # hashes of blocks that nobody else has
        shared = tuple(next(fresh) for _ in range(self.shared_tokens // BLOCK_TOKENS))
        for stem, tokens, n in ((shared, self.own_tokens, self.prompts), ((), self.other_tokens, self.others)):
            for _ in range(n):
                own = tuple(next(fresh) for _ in range(-(-tokens // BLOCK_TOKENS)))
                yield TraceRequest(
                    arrival_s=0.0,
                    input_tokens=len(stem) * BLOCK_TOKENS + tokens,
                    output_tokens=self.answer_tokens,
                    block_hashes=stem + own,
                    category="burst" if stem else "others",
                )

    def trace(self) -> Trace:
        return Trace.of(TraceHeader(name="cold burst", block_tokens=BLOCK_TOKENS), self.requests())


@dataclass(frozen=True)
class Figures:
    """ttft_s: median and 99th percentile. computed_tokens: of prompts. makespan_s: to the end of the last answer."""

    prompts: int
    follows: bool
    ttft_s: tuple[float, float]
    others_ttft_s: tuple[float, float] | None
    computed_tokens: int
    steps: int
    makespan_s: float


def measure(burst: Burst, model: str, device: str, follows: bool) -> Figures:
    setup = Setup(
        hardware=hardware_of(described(model), device),
        policies=lambda: build_policies(options={"admit": {"follow": follows}}),
    )
    fleet = fleet_of(setup, burst.trace())
    fleet.run(burst.trace())

    def ttft_s(category: str) -> tuple[float, float]:
        waits_s = [record.token_s[0] for record in fleet.records if record.category == category]
        return float(np.percentile(waits_s, 50)), float(np.percentile(waits_s, 99))

    counters = fleet.instances[0].engine.counters()
    return Figures(
        prompts=burst.prompts,
        follows=follows,
        ttft_s=ttft_s("burst"),
        others_ttft_s=ttft_s("others") if burst.others else None,
        computed_tokens=int(counters["prefix_queried_tokens_total"] - counters["prefix_hit_tokens_total"]),
        steps=int(counters["steps_total"]),
        makespan_s=max(record.end_s or 0.0 for record in fleet.records),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-8b")
    parser.add_argument("--device", default="h200")
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--shared-tokens", type=int, default=4096)
    parser.add_argument("--own-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--other-tokens", type=int, default=1000)
    parser.add_argument("--write-trace", type=Path, help="write the first burst to this file, and end")
    asked = parser.parse_args()
    lengths = (asked.shared_tokens, asked.own_tokens, asked.answer_tokens, asked.others, asked.other_tokens)
    bursts = [Burst(n, *lengths) for n in asked.prompts]
    if asked.write_trace is not None:
        write_trace(asked.write_trace, bursts[0].trace())
        return
    figures = []
    print("| prompts | follow | TTFT p50 / p99, s | others' TTFT p50 / p99, s | prompt tokens computed | makespan, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for burst in bursts:
        for follows in (False, True):
            got = measure(burst, asked.model, asked.device, follows)
            figures.append(got)
            ttft = "{:.2f} / {:.2f}".format(*got.ttft_s)
            others = "-" if got.others_ttft_s is None else "{:.2f} / {:.2f}".format(*got.others_ttft_s)
            print(
                f"| {got.prompts} | {'on' if follows else 'off'} | {ttft} | {others} | {got.computed_tokens:,} | "
                f"{got.makespan_s:.1f} |",
                flush=True,
            )
    print(json.dumps([asdict(got) for got in figures]))


if __name__ == "__main__":
    main()
