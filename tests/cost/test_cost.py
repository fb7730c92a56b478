"""Shapes against real models' sizes, and a roofline that behaves as arithmetic does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from penstock.bench.shapes import SHAPES, folder_of
from penstock.core.errors import ConfigError, CorruptModel, UnknownName
from penstock.cost.devices import DEVICES, device_of
from penstock.cost.load import StepLoad
from penstock.cost.model import Roofline, Work
from penstock.hardware import described, hardware_of
from penstock.models.facts import model_facts
from penstock.models.read_spec import read_model_spec
from penstock.models.weights import resolve_dtype, weight_bytes

LLAMA = described("llama-8b").shape()


@pytest.mark.parametrize("name", SHAPES)
def test_a_description_has_the_bytes_that_the_loader_counts(name):
    model = described(name)
    with folder_of(name) as folder:
        spec = read_model_spec(folder)
        assert model.shape().weight_bytes == weight_bytes(spec)
        facts = model_facts(
            spec, name, block_tokens=16, kv_item_bytes=resolve_dtype(spec, "auto").itemsize, weight_bytes=0
        )
    assert 16 * model.shape().kv_token_bytes == sum(state.block_bytes for state in facts.states)
    assert model.facts(16).states == facts.states
    assert model.facts(16).max_model_tokens == facts.max_model_tokens


@pytest.mark.parametrize(("name", "active_billions"), [("llama-8b", 7.5), ("qwen3-0.6b", 0.6), ("qwen3-30b-a3b", 3.0)])
def test_active_weights_are_what_the_names_say(name, active_billions):
    shape = described(name).shape()
    assert (shape.active_weights + shape.head_weights) / 1e9 == pytest.approx(active_billions, rel=0.15)


def test_many_tokens_touch_all_experts_and_one_touches_its_own():
    shape = described("qwen3-30b-a3b").shape()
    assert shape.read_bytes(1) - shape.dense_bytes == pytest.approx(shape.expert_bytes * 8 / 128)
    assert shape.read_bytes(10_000) == pytest.approx(shape.dense_bytes + shape.expert_bytes)


@pytest.mark.parametrize("quantize", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-30b-a3b"])
def test_a_description_with_rounded_weights_has_the_bytes_that_a_gpu_gets(name, quantize):
    shape, whole = described(name, quantize).shape(), described(name).shape()
    with folder_of(name) as folder:
        assert shape.weight_bytes == weight_bytes(read_model_spec(folder), quantize=quantize, device_type="cuda")
    assert shape.kv_token_bytes == whole.kv_token_bytes
    assert (shape.head_bytes == whole.head_bytes) == (quantize == "fp8")
    assert shape.read_bytes(10_000) < 0.8 * whole.read_bytes(10_000)


def test_a_wrong_configuration_names_the_field(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SHAPES["llama-8b"], "hidden_size": "big"}))
    with pytest.raises(CorruptModel, match="hidden_size is 'big'"):
        described(str(tmp_path))


def test_a_model_that_does_not_fit_is_told_so():
    with pytest.raises(ConfigError, match=r"qwen3-30b-a3b does not fit on one l4: weights take 5\d\.\d of 24 GiB"):
        hardware_of(described("qwen3-30b-a3b"), "l4")


def test_an_unknown_device_is_answered_with_those_there_are():
    with pytest.raises(UnknownName, match="h200"):
        device_of("h2000")


def test_decoding_one_sequence_costs_reading_the_weights():
    work = Work.of(LLAMA, DEVICES["h200"])
    parts = work.parts(StepLoad(decode_rows=1, decode_keys=1, samples=1))
    read_s = LLAMA.dense_bytes / DEVICES["h200"].bytes_per_s
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
