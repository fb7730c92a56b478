"""From folders to decoders: what is accepted, what each kind of damage says, and that nothing is held twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from penstock.core.errors import CorruptModel, ModelError, ModelNotFound, UnknownName, UnsupportedModel
from penstock.models.weights import load_model, weight_bytes
from tests.models.checkpoints import MAKERS, save
from tests.models.paged_run import PagedRun

IDS = [5, 3, 90, 17, 44, 2, 8]
Q0 = "model.layers.0.self_attn.q_proj.weight"


def logits_of(decoder):
    return PagedRun(decoder, [IDS], 4).step({0: len(IDS)})[0]


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(checkpoint("llama3-gqa")[1], tmp_path / "model")


@pytest.fixture
def edit(folder):
    """Change the tensors of the checkpoint."""

    def rewrite(change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")

    return rewrite


@pytest.mark.parametrize("name", ["llama-mha", "qwen3", "qwen3-moe-mixed"])
def test_shards_equal_one_file(name, checkpoint, tmp_path):
    model, single = checkpoint(name)
    sharded = save(model, tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    torch.testing.assert_close(logits_of(load_model(sharded)), logits_of(load_model(single)), atol=0, rtol=0)


@pytest.mark.parametrize("name", MAKERS)
def test_memory_is_known_before_it_is_taken(name, checkpoint):
    decoder = load_model(checkpoint(name)[1])
    assert weight_bytes(decoder.spec) == sum(tensor.nbytes for tensor in decoder.tensors.values())


def test_dtype_auto_is_that_of_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, dtype="float16").dtype == torch.float16
    assert load_model(folder, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(UnknownName, match="unknown dtype 'int4'; known: auto, bfloat16, float16, float32"):
        load_model(folder, dtype="int4")


def test_dummy_weights_need_the_configuration_only_and_repeat(folder):
    (folder / "model.safetensors").unlink()
    first, second = (logits_of(load_model(folder, load_format="dummy")) for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert first.isfinite().all()
    assert first.std() > 1e-3
    with pytest.raises(UnknownName, match="unknown load format 'pickle'; known: auto, dummy"):
        load_model(folder, load_format="pickle")


def test_a_stored_head_that_is_tied_and_old_rope_buffers_are_ignored(folder, edit):
    expected = logits_of(load_model(folder))

    def add(tensors):
        tensors["lm_head.weight"] = torch.zeros(96, 64)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    edit(add)
    torch.testing.assert_close(logits_of(load_model(folder)), expected, atol=0, rtol=0)


def test_a_missing_tensor_is_named_with_its_shape(folder, edit):
    edit(lambda tensors: tensors.pop(Q0))
    with pytest.raises(CorruptModel, match=rf"tensor {Q0}, of shape \[64, 64\], is in none"):
        load_model(folder)


def test_an_unexpected_tensor_is_named_with_its_file(folder, edit):
    edit(lambda tensors: tensors.update({"model.layers.9.mystery": torch.zeros(1)}))
    with pytest.raises(CorruptModel, match=r"model\.safetensors: unexpected tensor model\.layers\.9\.mystery"):
        load_model(folder)


def test_a_wrong_shape_is_named_with_both_shapes(folder, edit):
    edit(lambda tensors: tensors.update({Q0: torch.zeros(64, 32)}))
    with pytest.raises(CorruptModel, match=rf"tensor {Q0} has shape \[64, 32\], config.json asks for \[64, 64\]"):
        load_model(folder)


def test_a_quantized_tensor_is_unsupported_not_misread(folder, edit):
    edit(lambda tensors: tensors.update({Q0: torch.zeros(64, 64, dtype=torch.int8)}))
    with pytest.raises(UnsupportedModel, match=rf"tensor {Q0} has dtype I8; supported: BF16, F16, F32"):
        load_model(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "too few for a safetensors file"),
        (lambda data: data[:5], "too few for a safetensors file"),
        (lambda data: data[:200], "its header claims"),
        (lambda data: data[:-1], "it is truncated"),
        (lambda data: data[: len(data) // 2], "it is truncated"),
        (lambda data: b"\xff" * len(data), "its header claims"),
        (lambda data: bytes(len(data)), "its header claims 0 bytes"),
        (lambda data: data[:8] + b"x" * (len(data) - 8), "no valid JSON"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "its header claims"),
    ],
    ids=["empty", "5 bytes", "header cut", "last byte", "half", "ones", "zeros", "garbage", "lfs pointer"],
)
def test_a_damaged_file_is_one_clear_line(damage, message, folder):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptModel, match=message) as caught:
        load_model(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_the_header_loads_or_is_a_model_error(data, checkpoint, tmp_path):
    source = checkpoint("llama-mha")[1]
    whole = bytearray((source / "model.safetensors").read_bytes())
    header_bytes = int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 8 + header_bytes - 1))
        whole[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(list(b'0123456789[]{}",:-'))))
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(whole)
    try:
        load_model(tmp_path)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017, other errors must not be expected


def test_a_header_whose_shape_contradicts_its_bytes_is_refused(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[64,64]', b'"shape":[64,63]', 1))
    with pytest.raises(CorruptModel, match=r"of shape \[64, 63\] and dtype F32 has 16384 bytes"):
        load_model(folder)


def test_tensors_at_odd_addresses_are_read(folder):
    expected = logits_of(load_model(folder))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    path.write_bytes(
        (header_bytes + 1).to_bytes(8, "little") + data[8 : 8 + header_bytes] + b" " + data[8 + header_bytes :]
    )
    torch.testing.assert_close(logits_of(load_model(folder)), expected, atol=0, rtol=0)


def test_pickles_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin, a pickle, which can run code.*Convert"):
        load_model(folder)


def test_a_folder_without_weights_says_what_was_looked_for(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"looked for model\.safetensors and model\.safetensors\.index\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map is missing"),
        ({"weight_map": {Q0: "shard-1.safetensors"}}, r"names shard-1\.safetensors, which is missing"),
        ({"weight_map": {Q0: "../model/weights.safetensors"}}, "is no plain file name"),
        ({"weight_map": {Q0: 7}}, "is 7, expected a string"),
        ({"weight_map": {"nobody": "weights.safetensors"}}, "tensor nobody is not in it"),
    ],
    ids=["no map", "no shard", "leaves the folder", "not text", "not there"],
)
def test_a_broken_index_is_refused(index, message, folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptModel, match=message):
        load_model(folder)


MEASURE = """
import sys, torch
from penstock.models.weights import load_model, weight_bytes
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
torch.ones(8, 8) @ torch.ones(8, 8)
before = peak()
decoder = load_model(sys.argv[1], dtype=sys.argv[2])
for tensor in (decoder._embed, *(layer.attention.qkv for layer in decoder._layers)):
    tensor.sum()
print(peak() - before, weight_bytes(decoder.spec, sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_resident_once(dtype, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 4096, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 8}
    folder = save(LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=4)), tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, dtype], capture_output=True, text=True, check=True, timeout=120
    )
    grown_bytes, expected_bytes = map(int, run.stdout.split())
    largest_part_bytes = 4 * 3072 * 768
    assert grown_bytes < expected_bytes + 2 * largest_part_bytes + 8 * 2**20
