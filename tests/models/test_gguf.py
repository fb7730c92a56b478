"""GGUF files give the logits of the checkpoint they were made from; every block type is what `gguf.quants` says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import gguf
import numpy
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.formats.gguf import TYPES, GgufFile
from penstock.models.gguf import tensors
from penstock.models.gguf.dequantize import DEQUANTIZE, dequantize
from penstock.models.read_spec import read_model_spec
from penstock.models.weights import load_model
from tests.models.checkpoints import LINEAR_ROPE, make_model, save
from tests.models.gguf_files import dequantized, finish, permute, write_gguf
from tests.models.paged_run import PagedRun
from tests.models.ranks import on_ranks

IDS = [5, 3, 90, 17, 44, 2, 8, 61, 33, 20]
EXTRA = {"llama-linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": LINEAR_ROPE["factor"]}}
NAMES = ["llama-mha", "llama-linear", "mixtral", "qwen2", "qwen3", "qwen3-biased", "qwen3-moe"]
# transformers starts from a `rope_freqs.weight` of llama.cpp's converter for these parameters
YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 64,
    "llama.rope.scaling.yarn_beta_fast": 16.0,
}


def logits_of(path, **options):
    decoder = load_model(path, **options)
    return PagedRun(decoder, [IDS], 4).step({0: len(IDS)})[0]


@pytest.mark.parametrize("name", ["llama-mha", "qwen2", "mixtral"])
@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_two_ranks_read_their_shares_of_a_file(name, type_name, tmp_path):
    path = write_gguf(wide(make_model(name)), tmp_path / "model.gguf", type_name)

    def work(peers):
        decoder = load_model(path, dtype="float32", peers=peers)
        return PagedRun(decoder, [IDS], 4).step({0: len(IDS)})[0]

    torch.testing.assert_close(on_ranks(2, work)[0], logits_of(path, dtype="float32"), atol=1e-4, rtol=0)


def wide(model):
    """The same with rows of whole blocks, as quantizing wants them; anew, from its own initialization."""
    features = {"hidden_size": 64, "intermediate_size": 96}
    return type(model)(type(model.config)(**model.config.to_dict() | features)).eval()


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def random_blocks(type_name, n_blocks=500):
    """Every bit pattern, with scales of some ordinary size."""
    block_bytes = next(size for name, _, size in TYPES.values() if name == type_name)
    generator = numpy.random.default_rng(7)
    blocks = generator.integers(0, 256, (n_blocks, block_bytes), dtype=numpy.uint8)
    scales = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,)}
    for at in scales.get(type_name, ()):
        halves = generator.normal(0, 0.1, (n_blocks, 1)).astype(numpy.float16)
        blocks[:, at : at + 2] = halves.view(numpy.uint8)
    return blocks


@pytest.mark.parametrize("type_name", DEQUANTIZE)
def test_blocks_come_out_bit_for_bit_as_the_gguf_package_reads_them(type_name):
    blocks = random_blocks(type_name)
    if type_name in ("F32", "F16"):  # the package leaves these to numpy
        expected = blocks.view({"F32": "<f4", "F16": "<f2"}[type_name]).astype(numpy.float32)
    else:
        expected = gguf.quants.dequantize(blocks, Type[type_name])
    found = dequantize(type_name, blocks)
    assert found.dtype == numpy.float32
    numpy.testing.assert_array_equal(found.view(numpy.uint32), expected.view(numpy.uint32))


@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.parametrize("type_name", ["Q4_K", "Q6_K"])
def test_rows_of_any_type_go_to_their_place_a_piece_at_a_time(type_name, heads, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "PIECE_ELEMENTS", 1024)  # two rows of 512
    rows = random_blocks(type_name, 24).reshape(12, -1)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", rows, raw_dtype=Type[type_name])
    finish(writer)
    file = tensors.GgufTensors(GgufFile(tmp_path / "m.gguf"), {"attn_q.weight": heads})
    into = torch.full((12, 512), torch.nan)
    file.copy("blk.0.attn_q.weight", into)
    expected = torch.from_numpy(gguf.quants.dequantize(rows, Type[type_name]))
    same(permute(into, 3) if heads else into, expected)


def test_all_types_of_the_reader_can_be_dequantized():
    assert {name for name, *_ in TYPES.values()} == DEQUANTIZE.keys()
    for kind, (name, elements, n_bytes) in TYPES.items():
        assert Type(kind).name == name
        assert gguf.GGML_QUANT_SIZES[Type(kind)] == (elements, n_bytes)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_logits_of_the_checkpoint_it_was_made_from(name, type_name, tmp_path):
    model = dequantized(make_model(name), type_name)
    folder = save(model, tmp_path / "model")
    path = write_gguf(model, tmp_path / "model.gguf", type_name, EXTRA.get(name))
    same(logits_of(path, dtype="float32"), logits_of(folder, dtype="float32"))


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q5_0"])
@pytest.mark.parametrize("name", ["llama-mha", "qwen3"])
def test_a_quantized_file_gives_the_logits_of_its_dequantized_weights(name, type_name, tmp_path):
    model = wide(make_model(name))
    path = write_gguf(model, tmp_path / "model.gguf", type_name)
    folder = save(dequantized(model, type_name), tmp_path / "model")
    same(logits_of(path, dtype="float32"), logits_of(folder, dtype="float32"))
    same(logits_of(path), logits_of(folder, dtype="bfloat16"))


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_is_that_of_the_config(name, checkpoint, tmp_path):
    model, folder = checkpoint(name)
    path = write_gguf(model, tmp_path / "model.gguf", "F32", EXTRA.get(name))
    assert dataclasses.replace(read_model_spec(path), stop_token_ids=frozenset()) == dataclasses.replace(
        read_model_spec(folder), stop_token_ids=frozenset()
    )


def test_yarn_and_biases_are_read(checkpoint, tmp_path):
    model, folder = checkpoint("llama-yarn-biased")
    path = write_gguf(model, tmp_path / "model.gguf", "F32", YARN)
    same(logits_of(path), logits_of(folder))


def test_the_rope_of_llama_3_comes_as_factors(checkpoint, tmp_path):
    model, folder = checkpoint("llama3-gqa")
    plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = plain / model.model.rotary_emb.inv_freq
    assert factors.max() > 7
    path = write_gguf(model, tmp_path / "model.gguf", extra={"rope_freqs.weight": factors.numpy()})
    torch.testing.assert_close(logits_of(path), logits_of(folder), atol=1e-4, rtol=0)


def test_dtype_auto_is_that_of_most_weights(checkpoint, tmp_path):
    model, _ = checkpoint("qwen3")
    for type_name, dtype in (("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")):
        if type_name == "Q8_0":
            model = type(model)(type(model.config)(**model.config.to_dict() | {"intermediate_size": 96}))
        path = write_gguf(model, tmp_path / f"{type_name}.gguf", type_name)
        assert read_model_spec(path).dtype == dtype


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"general.architecture": "mamba"},
            "general.architecture is 'mamba'; supported: llama, qwen2, qwen3, qwen3moe",
        ),
        ({"split.count": 3}, "one of 3 parts.*llama-gguf-split --merge"),
        ({"qwen3.expert_count": 8}, "qwen3 with 8 experts; supported: llama, qwen3moe"),
        ({"llama.rope.dimension_count": 8}, "partial_rotary_factor is 0.5"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "rope_type is 'longrope'"),
        ({"llama.attention.value_length": 8}, "value_length is 8; supported: 16"),
        ({"llama.attention.head_count": [4, 4, 2, 4]}, "head_count differs between layers"),
    ],
)
def test_what_is_not_supported_is_said(metadata, message, checkpoint, tmp_path, monkeypatch):
    def replace(self, key, value, *rest, **options):
        original(self, key, metadata.get(key, value) if not isinstance(value, list) else value, *rest, **options)

    model, _ = checkpoint("qwen3" if "qwen3.expert_count" in metadata else "llama-mha")
    original = gguf.GGUFWriter.add_key_value
    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", replace)
    head_count = metadata.get("llama.attention.head_count")
    if head_count:
        monkeypatch.setattr(
            gguf.GGUFWriter,
            "add_head_count",
            lambda self, count: self.add_array("llama.attention.head_count", head_count),
        )
    known = {"general.architecture", "llama.attention.value_length", "llama.attention.head_count"}
    path = write_gguf(model, tmp_path / "m.gguf", "F32", {k: v for k, v in metadata.items() if k not in known})
    with pytest.raises(UnsupportedModel, match=message):
        load_model(path)


def test_a_type_that_nobody_reads_is_named(checkpoint, tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 84), numpy.uint8), raw_dtype=Type.Q2_K)
    finish(writer)
    with pytest.raises(UnsupportedModel, match=r"token_embd\.weight has GGML type 10; supported: F32, F16, Q4_0"):
        load_model(path)


def test_tensors_are_named_as_the_file_names_them(checkpoint, tmp_path):
    model, _ = checkpoint("llama-mha")
    path = write_gguf(model, tmp_path / "m.gguf", extra={"blk.9.mystery": numpy.zeros(8, numpy.float32)})
    with pytest.raises(CorruptModel, match=r"unexpected tensor blk\.9\.mystery; its metadata describes"):
        load_model(path)


def test_the_reader_agrees_with_the_gguf_package(checkpoint, tmp_path):
    model, _ = checkpoint("qwen3-moe")
    extra = {
        "some.floats": [1.5, 2.0],
        "some.words": ["a", "ü", ""],
        "some.flags": [True, False],
        "some.long": 2**32 - 1,
    }
    path = write_gguf(model, tmp_path / "m.gguf", "F16", extra)
    mine, theirs = GgufFile(path), gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert mine.metadata.keys() == expected.keys()
    for key, value in expected.items():
        assert mine.metadata[key] == (pytest.approx(value) if isinstance(value, float) else value)
    assert {name: record.start for name, record in mine.tensors.items()} == {
        tensor.name: tensor.data_offset for tensor in theirs.tensors
    }


MEASURE = """
import re, sys, torch
from penstock.models.weights import load_model

def now():  # bytes of this process that no file backs, and of files mapped into it
    status = open("/proc/self/status").read()
    return sum(1024 * int(re.search(rf"Rss{kind}:\\s+(\\d+)", status)[1]) for kind in ("Anon", "File"))

torch.set_num_threads(1)
torch.ones(8, 8) @ torch.ones(8, 8)
before = now()
decoder = load_model(sys.argv[1])
print(now() - before, sum(t.nbytes for t in decoder.tensors.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_dequantized_model_is_resident_once(tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = {"vocab_size": 4096, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 8}
    config = Qwen3Config(**shape, num_hidden_layers=4, num_key_value_heads=8, head_dim=96)
    path = write_gguf(Qwen3ForCausalLM(config), tmp_path / "m.gguf", "Q8_0")
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True, timeout=120)
    grown_bytes, expected_bytes = map(int, run.stdout.split())
    assert grown_bytes < expected_bytes + 48 * 2**20  # a few pieces of float32, whatever the size of the model
