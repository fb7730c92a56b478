"""Small parts for tests of the simulator: a tiny model, a cost of plain numbers, traces."""

from __future__ import annotations

import random
from dataclasses import dataclass

from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.core.plan import Toward
from penstock.core.view import Estimate
from penstock.cost.devices import Device
from penstock.cost.load import Floats, StepLoad
from penstock.cost.model import CostModel
from penstock.sim.executor import STOP_TOKEN
from penstock.sim.instance import Hardware
from penstock.workload.trace import Trace, TraceHeader, TraceRequest

TOKEN_BYTES = 64  # keys and values, in all layers


def facts(block_tokens: int) -> ModelFacts:
    state = StateSpec(
        name="kv", kind=StateKind.PAGED, layers=(0, 1, 2, 3), block_tokens=block_tokens,
        block_bytes=block_tokens * TOKEN_BYTES,
    )  # fmt: skip
    return ModelFacts(
        name="tiny", n_layers=4, vocab_size=300, max_model_tokens=512, stop_token_ids=frozenset({STOP_TOKEN}),
        states=(state,), weight_bytes=20_000,
    )  # fmt: skip


DEVICE = Device(
    name="toy", flop_per_s=1e12, bytes_per_s=1e12, host_bytes_per_s=1e9, memory_bytes=2**20, price_per_hour=1.0
)


@dataclass(frozen=True)
class Linear:
    """So many seconds a step, a prompt token, and a decoding row."""

    step_s: float = 1e-3
    token_s: float = 1e-5
    row_s: float = 1e-5
    host: float = 0.0

    def step(self, load: StepLoad) -> Estimate:
        return Estimate(self.step_s + self.token_s * load.chunk_tokens + self.row_s * load.decode_rows, 0.0)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        return self.step(StepLoad(rows)).seconds + 0.0 * keys

    def host_s(self, load: StepLoad) -> float:
        return self.host

    front_s: float = 0.0

    def move_s(self, n_bytes: int, toward: Toward) -> float:
        return n_bytes / 1e9

    def describe(self) -> str:
        return "made up"


def hardware(cost: CostModel | None = None, n_blocks: int = 400, max_rows: int = 8, block_tokens: int = 4) -> Hardware:
    return Hardware(
        facts=facts(block_tokens), device=DEVICE, cost=cost or Linear(), max_rows=max_rows, n_blocks=(n_blocks,)
    )


def poisson_trace(n: int, rate_per_s: float, *, inputs=(4, 40), outputs=(1, 30), seed=0, sessions=0) -> Trace:
    rng, at_s, rows = random.Random(seed), 0.0, []
    for _ in range(n):
        at_s += rng.expovariate(rate_per_s)
        session = f"s{rng.randrange(sessions)}" if sessions else None
        rows.append(
            TraceRequest(
                arrival_s=at_s, input_tokens=rng.randint(*inputs), output_tokens=rng.randint(*outputs), session=session
            )
        )
    return Trace.of(TraceHeader(name="poisson"), rows)
