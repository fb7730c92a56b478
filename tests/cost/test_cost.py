"""Shapes against real models' sizes, and a roofline that behaves as arithmetic does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.shapes import SHAPES, folder_of
from penstock.core.errors import CorruptModel, UnknownName
from penstock.cost.devices import DEVICES, device_of
from penstock.cost.load import StepLoad
from penstock.cost.model import Roofline, Work
from penstock.cost.shape import shape_of
from penstock.models.facts import model_facts
from penstock.models.read_spec import read_model_spec
from penstock.models.weights import resolve_dtype, weight_bytes

LLAMA = shape_of("llama-8b", SHAPES["llama-8b"])


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_bytes_that_the_loader_counts(name):
    """All but norms, which a shape leaves out."""
    shape = shape_of(name, SHAPES[name])
    with folder_of(name) as folder:
        spec = read_model_spec(folder)
        assert shape.weight_bytes == pytest.approx(weight_bytes(spec), rel=1e-3)
        facts = model_facts(
            spec, name, block_tokens=16, kv_item_bytes=resolve_dtype(spec, "auto").itemsize, weight_bytes=0
        )
    assert 16 * shape.kv_token_bytes == sum(state.block_bytes for state in facts.states)
    assert shape.max_tokens == facts.max_model_tokens


@pytest.mark.parametrize(("name", "active_billions"), [("llama-8b", 7.5), ("qwen3-0.6b", 0.6), ("qwen3-30b-a3b", 3.0)])
def test_active_weights_are_what_the_names_say(name, active_billions):
    shape = shape_of(name, SHAPES[name])
    assert (shape.active_weights + shape.head_weights) / 1e9 == pytest.approx(active_billions, rel=0.15)


def test_many_tokens_touch_all_experts_and_one_touches_its_own():
    shape = shape_of("moe", SHAPES["qwen3-30b-a3b"])
    dense = shape.item_bytes * shape.dense_weights
    assert shape.read_bytes(1) - dense == pytest.approx(shape.item_bytes * shape.expert_weights * 8 / 128)
    assert shape.read_bytes(10_000) == pytest.approx(dense + shape.item_bytes * shape.expert_weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hidden_size": "big"}, "hidden_size is 'big'"), ({"num_hidden_layers": None}, "no num_hidden_layers")],
)
def test_a_wrong_configuration_names_the_field(change, words):
    with pytest.raises(CorruptModel, match=words):
        shape_of("broken", {**SHAPES["llama-8b"], **change})


def test_an_unknown_device_is_answered_with_those_there_are():
    with pytest.raises(UnknownName, match="h200"):
        device_of("h2000")


def test_decoding_one_sequence_costs_reading_the_weights():
    work = Work.of(LLAMA, DEVICES["h200"])
    parts = work.parts(StepLoad(decode_rows=1, decode_keys=1, samples=1))
    read_s = (LLAMA.dense_weights * 2) / DEVICES["h200"].bytes_per_s
    assert parts.linear_s + parts.head_s == pytest.approx(read_s)


loads = st.builds(
    StepLoad, decode_rows=st.integers(0, 512), decode_keys=st.integers(0, 10**6), chunk_tokens=st.integers(0, 8192),
    chunk_keys=st.integers(0, 10**5), chunk_pairs=st.floats(0, 1e8), samples=st.integers(0, 512),
)  # fmt: skip


@given(load=loads, device=st.sampled_from(sorted(DEVICES)))
def test_more_work_never_takes_less_time_and_a_faster_device_never_more(load, device):
    cost = Roofline(work=Work.of(LLAMA, DEVICES[device]))
    seconds = cost.step(load).seconds
    assert seconds > 0
    for field in ("decode_rows", "decode_keys", "chunk_tokens", "chunk_pairs", "samples"):
        more = replace(load, **{field: getattr(load, field) * 2 + 1})
        assert cost.step(more).seconds >= seconds
    assert Roofline(work=Work.of(LLAMA, DEVICES["b200"])).step(load).seconds <= seconds
