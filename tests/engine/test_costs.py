"""Costs with a model behind them: corrected by live steps, with a band, and superlinear in the length of a context."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from penstock.core.executor import ModelFacts, StateKind, StateSpec, StepResult
from penstock.core.plan import Chunk, DecodeGroup, Plan, RowStart, Toward
from penstock.core.request import SamplingParams
from penstock.core.view import Estimate, Yield
from penstock.cost.load import Floats, StepLoad
from penstock.engine.costs import OnlineCosts
from penstock.policy.preempt.cheapest import Cheapest
from tests.policy.views import Blocks, make_seq, make_view


@dataclass(frozen=True)
class Square:
    """A step costs something, each prompt token, and each pair of a token and a key that it sees."""

    front_s = 0.0

    def step(self, load: StepLoad) -> Estimate:
        seconds = 1e-3 + 1e-6 * load.decode_keys + 1e-6 * load.chunk_tokens + 1e-9 * load.chunk_pairs
        return Estimate(seconds, 0.1, is_extrapolated=load.chunk_tokens > 10_000)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        return 1e-3 + 1e-6 * keys

    def host_s(self, load: StepLoad) -> float:
        return 0.0

    def move_s(self, n_bytes: int, toward: Toward) -> float:
        return n_bytes / 1e9

    def describe(self) -> str:
        return "made up"


STATE = StateSpec(name="kv", kind=StateKind.PAGED, layers=(0,), block_tokens=16, block_bytes=1600)
FACTS = ModelFacts(
    name="m", n_layers=1, vocab_size=9, max_model_tokens=10**6, stop_token_ids=frozenset(), states=(STATE,),
    weight_bytes=10**9,
)  # fmt: skip


def start(row: int, computed: int) -> RowStart:
    return RowStart(
        row=row, tokens=[], prompt_tokens=9, computed_tokens=computed, blocks=(), sampling=SamplingParams(), seed=0
    )  # type: ignore[arg-type]


def run(costs: OnlineCosts, plan: Plan, seconds: float) -> None:
    costs.note_plan(plan)
    costs.note_step(plan, StepResult(tokens=np.zeros(0, np.int32), device_s=seconds))


def decoding(costs: OnlineCosts, seconds_of, n: int, rows: int = 4) -> DecodeGroup:
    group = DecodeGroup(tuple(range(rows)), 1)
    for number in range(n):
        starts = tuple(start(row, 100) for row in group.rows) if not number else ()
        run(costs, Plan(id=number, decode=group, starts=starts), seconds_of(1e-3 + 1e-6 * rows * (101 + number)))
    return group


def test_a_device_that_is_slower_than_its_profile_is_noticed_by_kind_of_step():
    costs = OnlineCosts(FACTS, Square())
    group = decoding(costs, lambda model_s: 1.4 * model_s, 200)
    found = costs.step(Plan(decode=group))
    assert found is not None
    assert found.seconds == pytest.approx(1.4 * (1e-3 + 1e-6 * 4 * 301), rel=0.01)
    assert costs.counters()["decode_cost_factor"] == pytest.approx(1.4, rel=0.01)
    assert costs.counters()["prefill_cost_factor"] == 1.0


def test_it_follows_when_the_device_gets_faster_again():
    costs = OnlineCosts(FACTS, Square())
    group = decoding(costs, lambda model_s: 2 * model_s, 300)
    for number in range(300, 500):
        run(costs, Plan(id=number, decode=group), 1e-3 + 1e-6 * 4 * (101 + number))
    assert costs.counters()["decode_cost_factor"] == pytest.approx(1.0, abs=0.05)


def test_the_band_is_how_far_steps_scatter():
    rng = random.Random(3)
    narrow, wide = OnlineCosts(FACTS, Square()), OnlineCosts(FACTS, Square())
    for costs, frac in ((narrow, 0.02), (wide, 0.3)):
        group = decoding(costs, lambda model_s, frac=frac: model_s * (1 + rng.uniform(-frac, frac)), 300)
    narrow_frac, wide_frac = (costs.step(Plan(decode=group)).band_frac for costs in (narrow, wide))
    assert narrow_frac == pytest.approx(0.02, rel=0.4)
    assert wide_frac == pytest.approx(0.3, rel=0.4)


def test_one_accident_moves_little():
    costs = OnlineCosts(FACTS, Square())
    group = decoding(costs, lambda model_s: model_s, 200)
    run(costs, Plan(id=200, decode=group), 60.0)
    assert costs.step(Plan(decode=group)).seconds < 1.2 * (1e-3 + 1e-6 * 4 * 302)


def test_what_lies_beyond_the_measured_sizes_keeps_its_flag_and_its_band():
    costs = OnlineCosts(FACTS, Square())
    decoding(costs, lambda model_s: model_s, 5)
    run(costs, Plan(id=5, starts=(start(9, 0),), chunks=(Chunk(row=9, start=0, stop=100),)), 1e-3 + 1.05e-4)
    found = costs.step(Plan(chunks=(Chunk(row=9, start=100, stop=20_100),)))
    assert found.is_extrapolated
    assert found.band_frac >= 0.1


def test_a_long_context_costs_more_than_its_length_and_answers_grow():
    costs = OnlineCosts(FACTS, Square())
    seconds = [costs.prefill_s(n) for n in (1, 16, 1000, 4000, 16_000, 64_000)]
    assert seconds == sorted(seconds)
    assert costs.prefill_s(64_000) > 6 * costs.prefill_s(16_000)
    plain = OnlineCosts(FACTS)
    assert plain.prefill_s(64_000) == pytest.approx(4 * plain.prefill_s(16_000))


def test_without_a_model_no_step_is_estimated():
    assert OnlineCosts(FACTS).step(Plan(chunks=(Chunk(row=0, start=0, stop=5),))) is None


@pytest.mark.parametrize(("tokens", "how"), [(1_000, Yield.RECOMPUTE), (60_000, Yield.SWAP)])
def test_the_choice_between_swap_and_recompute_turns_with_the_length_of_the_context(tokens, how):
    """Bytes grow with the length, computing with its square: two running means see no difference in kind."""
    costs = OnlineCosts(FACTS, Square())
    seq = make_seq("long", tokens, row=0, planned=tokens)
    memory = Blocks(swaps={seq.id: 8_000 * tokens})
    view = make_view(prefilling=(seq,), memory=memory, costs=costs)
    assert Cheapest().victim(view, view.prefilling).how is how
