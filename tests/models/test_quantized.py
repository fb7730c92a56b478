"""Models with rounded weights: what it costs in perplexity, how much memory they take, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from penstock.core.errors import UnsupportedModel
from penstock.demonstrations.streaming_llm import unseen_text
from penstock.models.decoder import Decoder
from penstock.models.families.family import WeightNames
from penstock.models.packing import Packer, Packing
from penstock.models.parameters import parameters_of
from penstock.models.weights import load_model, weight_bytes
from penstock.ops.quantized import FORMATS, QuantizedStack, QuantizedWeight
from penstock.ops.weight_format import Format
from penstock.options import EngineOptions
from tests.models.paged_run import PagedRun

WINDOW, TOKENS = 1024, 4096
# Perplexity over that of float weights, at most; docs/models.md states what was measured.
MOST_RATIO = {Format.FP8: 1.02, Format.INT8: 1.005, Format.INT4: 1.05}


def by_rows(decoder, format):
    """The model with its matrices rounded as a GPU has them, on the CPU."""
    packer = Packer(Packing(format, has_rows=True))
    parameters = parameters_of(decoder.spec, WeightNames())
    return Decoder(decoder.spec, {p.name: packer(p, decoder.tensors[p.name]) for p in parameters})


def perplexity(decoder, text):
    nats = []
    with torch.inference_mode():
        for start in range(0, len(text), WINDOW):
            ids = text[start : start + WINDOW]
            logits = PagedRun(decoder, [ids], 16).step({0: len(ids)})[0]
            nats.append(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:])).item())
    return math.exp(sum(nats) / len(nats))


@pytest.fixture(scope="module")
def bundled():
    """(the bundled model in float32, text that it was not trained on, its perplexity)."""
    decoder, text = load_model(EngineOptions().model_path, dtype="float32"), unseen_text(TOKENS)
    return decoder, text, perplexity(decoder, text)


@pytest.mark.parametrize("format", FORMATS)
def test_rounded_weights_keep_the_perplexity_of_the_bundled_model(bundled, format):
    decoder, text, of_floats = bundled
    ratio = perplexity(by_rows(decoder, format), text) / of_floats
    assert 0.99 < ratio < MOST_RATIO[format]


def test_fp8_keeps_embedding_head_and_router_and_int8_the_router(checkpoint):
    decoder = load_model(checkpoint("qwen3-moe")[1], dtype="float32", quantize="fp8")
    rounded = {name for name, tensor in decoder.tensors.items() if isinstance(tensor, QuantizedWeight | QuantizedStack)}
    assert {name.removeprefix("layers.0.") for name in rounded if name.startswith("layers.0.")} == {
        "attention.qkv",
        "attention.out",
        "mlp.gate_up",
        "mlp.down",
    }
    assert "embed" not in rounded
    of_int8 = by_rows(load_model(checkpoint("qwen3-moe")[1], dtype="float32"), Format.INT8).tensors
    assert isinstance(of_int8["embed"], QuantizedWeight)
    assert type(of_int8["layers.0.mlp.router"]) is torch.Tensor


@pytest.mark.parametrize("name", ["qwen3", "qwen3-moe"])
def test_an_fp8_model_answers_alike_however_a_prompt_is_cut(checkpoint, name):
    ids = list(range(3, 43))
    decoder = load_model(checkpoint(name)[1], dtype="float32", quantize="fp8")
    assert decoder.kernels["linear"] == "reference"
    with torch.inference_mode():
        whole = PagedRun(decoder, [ids], 16).step({0: 40})[0]
        run = PagedRun(decoder, [ids], 16)
        cut = torch.cat([run.step({0: n})[0] for n in (13, 1, 1, 25)])
    torch.testing.assert_close(cut, whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("format", FORMATS)
def test_the_size_is_known_before_loading(checkpoint, format):
    decoder = by_rows(load_model(checkpoint("qwen3-moe")[1], dtype="bfloat16"), format)
    size_bytes = sum(tensor.nbytes for tensor in decoder.tensors.values())
    assert weight_bytes(decoder.spec, "bfloat16", format.value, "cuda") == size_bytes


def test_fp8_takes_half_the_memory_of_bfloat16_on_a_gpu_and_int4_less(bundled):
    spec = bundled[0].spec
    whole, fp8, int8, int4 = (weight_bytes(spec, "bfloat16", q, "cuda") for q in ("none", "fp8", "int8", "int4"))
    embedding_bytes = 2 * spec.vocab_size * spec.hidden_size
    assert (fp8 - embedding_bytes) / (whole - embedding_bytes) == pytest.approx(0.5, abs=0.02)
    assert int8 / whole == pytest.approx(0.5, abs=0.02)
    assert int4 / whole == pytest.approx(4.5 / 16, abs=0.02)


def test_fp8_without_bfloat16_is_refused_on_a_gpu(checkpoint):
    with pytest.raises(UnsupportedModel, match=r"fp8 on a GPU takes bfloat16 activations, not torch.float16"):
        load_model(checkpoint("qwen3")[1], dtype="float16", device="cuda", quantize="fp8")
