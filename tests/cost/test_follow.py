"""What plans ask of the device, against counting every key of every sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.core.plan import NO_DECODE, Chunk, DecodeGroup, Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.cost.follow import PlanLoads
from penstock.cost.load import keys_seen

WINDOW, SINKS, N_LAYERS = 5, 2, 4


def facts(windowed_layers: int) -> ModelFacts:
    whole = StateSpec(
        name="kv", kind=StateKind.PAGED, layers=tuple(range(windowed_layers, N_LAYERS)), block_tokens=2,
        block_bytes=20 * (N_LAYERS - windowed_layers),
    )  # fmt: skip
    windowed = StateSpec(
        name="window", kind=StateKind.WINDOWED, layers=tuple(range(windowed_layers)), block_tokens=2,
        block_bytes=20 * windowed_layers, window_tokens=WINDOW, sink_tokens=SINKS, chunk_tokens=64,
    )  # fmt: skip
    states = tuple(state for state in (whole, windowed) if state.layers)
    return ModelFacts(
        name="m", n_layers=N_LAYERS, vocab_size=9, max_model_tokens=99, stop_token_ids=frozenset(), states=states,
        weight_bytes=0,
    )  # fmt: skip


def start(row: int, computed: int) -> RowStart:
    return RowStart(
        row=row, tokens=[], prompt_tokens=99, computed_tokens=computed, blocks=(), sampling=SamplingParams(), seed=0
    )  # type: ignore[arg-type]


@dataclass
class Counted:
    """The oracle: tokens of every row, and a look at each key."""

    windowed_layers: int
    keys: dict[int, int] = field(default_factory=dict)

    def read_by(self, position: int) -> float:
        windowed_frac = self.windowed_layers / N_LAYERS
        return windowed_frac * min(position + 1, WINDOW + SINKS) + (1 - windowed_frac) * (position + 1)

    def chunk_keys(self, first: int, stop: int) -> float:
        windowed_frac = self.windowed_layers / N_LAYERS
        return windowed_frac * min(stop, stop - first + WINDOW + SINKS - 1) + (1 - windowed_frac) * stop


@given(windowed_layers=st.integers(0, N_LAYERS), data=st.data())
def test_loads_are_what_counting_every_key_gives(windowed_layers, data):
    loads, oracle = PlanLoads(facts(windowed_layers)), Counted(windowed_layers)
    members: set[int] = set()
    group = NO_DECODE
    for step in range(data.draw(st.integers(1, 25), label="steps")):
        free = sorted(set(range(6)) - set(oracle.keys))
        starts = data.draw(st.lists(st.sampled_from(free), unique=True, max_size=2)) if free else []
        ends = data.draw(st.lists(st.sampled_from(sorted(oracle.keys)), unique=True, max_size=1)) if oracle.keys else []
        for row in ends:
            del oracle.keys[row]
            members.discard(row)
        for row in starts:
            oracle.keys[row] = data.draw(st.integers(0, 9), label="computed")
        waiting = sorted(set(oracle.keys) - members)
        chunked = data.draw(st.lists(st.sampled_from(waiting), unique=True, max_size=2)) if waiting else []
        chunks = []
        for row in chunked:
            n, is_whole = data.draw(st.integers(1, 12)), data.draw(st.booleans())
            at = oracle.keys[row]
            chunks.append(Chunk(row=row, start=at, stop=at + n, stop_layer=None if is_whole else 2))
        joining = data.draw(st.lists(st.sampled_from(waiting), unique=True)) if waiting else []
        wanted = (members | set(joining)) - set(chunked)
        leaving = data.draw(st.lists(st.sampled_from(sorted(wanted)), unique=True, max_size=1)) if wanted else []
        wanted -= set(leaving)
        if wanted != set(group.rows):
            group = DecodeGroup(tuple(sorted(wanted)), step)
        members = wanted
        plan = Plan(
            decode=group, chunks=tuple(chunks), starts=tuple(start(row, oracle.keys[row]) for row in starts),
            ends=tuple(ends),
        )  # fmt: skip
        imagined = None if starts or ends else loads.of(plan)
        load = loads.follow(plan)
        assert imagined is None or imagined.decode_keys == pytest.approx(load.decode_keys)
        assert load.decode_rows == len(group.rows)
        assert load.decode_keys == pytest.approx(sum(oracle.read_by(oracle.keys[row]) for row in group.rows))
        assert load.chunk_tokens == sum(chunk.tokens for chunk in chunks)
        assert load.chunk_keys == pytest.approx(sum(oracle.chunk_keys(c.start, c.stop) for c in chunks))
        pairs = sum(oracle.read_by(at) for chunk in chunks for at in range(chunk.start, chunk.stop))
        assert load.chunk_pairs == pytest.approx(pairs)
        for row in group.rows:
            oracle.keys[row] += 1
        for chunk in chunks:
            if chunk.stop_layer is None:
                oracle.keys[chunk.row] = chunk.stop
        assert {row: loads.keys(row) for row in oracle.keys} == oracle.keys


@given(start=st.integers(0, 40), n=st.integers(0, 40), most=st.none() | st.integers(1, 50))
def test_keys_seen_is_the_sum_over_tokens(start, n, most):
    seen = sum(at + 1 if most is None else min(at + 1, most) for at in range(start, start + n))
    assert keys_seen(start, start + n, most) == seen
