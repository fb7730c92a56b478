"""A layer as one call gives the bits of the layer op by op, and a token's bits do not depend on its company."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from penstock.models.decoder import Decoder
from penstock.models.fused import FusedLayer
from penstock.models.packing import Packing
from penstock.models.spec import (
    AttentionSpec,
    DenseSpec,
    LayerSpec,
    ModelSpec,
    NormPlace,
    NormSpec,
    QkNorm,
    RopeSpec,
)
from penstock.models.weights import make_dummy
from penstock.ops import native
from penstock.ops.activation import Activation
from penstock.ops.packed import DENSE_FORMATS
from penstock.ops.weight_format import Format
from tests.models.paged_run import PagedRun

ROPE = RopeSpec(theta=1e4, dim=64)
PLAIN = AttentionSpec(q_heads=4, kv_heads=2, head_dim=64, rope=ROPE)
ATTENTIONS = {
    "plain": PLAIN,
    "norms of heads": replace(PLAIN, qk_norm=QkNorm.HEAD),
    "biases": replace(PLAIN, has_qkv_bias=True, has_out_bias=True),
    "a window and a cap": replace(PLAIN, window_tokens=20, soft_cap=3.0),
    "half a head rotates": replace(PLAIN, rope=RopeSpec(theta=1e4, dim=32)),
    "nothing rotates": replace(PLAIN, rope=None, q_heads=3, kv_heads=3, head_dim=96),
    "many share a head": replace(PLAIN, q_heads=8, kv_heads=1, head_dim=128, rope=RopeSpec(theta=1e4, dim=128)),
}
FORMATS = [(dtype, format) for dtype in DENSE_FORMATS for format in (DENSE_FORMATS[dtype], Format.INT8, Format.INT4)]
LENGTHS = (1, 70, 16, 33)
needs_kernels = pytest.mark.skipif(
    not set(native.AVX512.needed) <= native.cpu_flags(), reason="the C++ kernels do not run on this CPU"
)


@pytest.fixture(autouse=True, scope="module")
def _native_kernels():
    """Loaded for this module; other tests of this process compare with torch's bits."""
    before = native.state()
    native.prepare()
    yield
    native._state = before


def decoder_of(attention, dtype, format, has_bias=False):
    layer = LayerSpec(attention=attention, mlp=DenseSpec(width=160, has_bias=has_bias))
    spec = ModelSpec(
        architecture="made",
        hidden_size=96,
        vocab_size=200,
        layers=(layer, layer),
        norm=NormSpec(eps=1e-6),
        is_tied=True,
        max_position_tokens=256,
        stop_token_ids=frozenset(),
        dtype="float32",
    )
    return Decoder(spec, make_dummy(spec, dtype, torch.device("cpu"), Packing(format, has_rows=False)))


def sequences():
    return [random.Random(n).choices(range(200), k=n) for n in LENGTHS]


def logits_of(decoder, steps, rows=(0, 1, 2, 3)):
    """Logits of every token, by row, after steps of (row -> tokens)."""
    run = PagedRun(decoder, sequences(), 16, seed=len(steps))
    parts = {row: [] for row in rows}
    for take in steps:
        for row, logits in run.step(take).items():
            parts[row].append(logits)
    return {row: torch.cat(some) for row, some in parts.items()}


@needs_kernels
@pytest.mark.parametrize(("dtype", "format"), FORMATS, ids=str)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_one_call_gives_the_bits_of_the_ops(name, dtype, format, monkeypatch):
    decoder = decoder_of(ATTENTIONS[name], dtype, format, has_bias=name == "biases")
    assert all(layer.fused is not None for layer in decoder._layers)
    steps = [{0: 1, 1: 40, 2: 16, 3: 5}, {1: 29, 3: 1}, {1: 1, 3: 1}, {3: 1}, {3: 1}]
    fused = logits_of(decoder, steps)
    monkeypatch.setattr(FusedLayer, "serves", lambda *args: False)
    by_ops = logits_of(decoder, steps)
    for row, logits in by_ops.items():
        assert logits.isfinite().all()
        torch.testing.assert_close(fused[row], logits, atol=0, rtol=0)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "format"), FORMATS, ids=str)
@pytest.mark.parametrize("name", ["plain", "a window and a cap"])
def test_a_token_gets_the_same_bits_alone_in_a_batch_and_however_its_prompt_is_cut(name, dtype, format, threads):
    decoder = decoder_of(ATTENTIONS[name], dtype, format)
    whole = dict(enumerate(LENGTHS))
    torch.set_num_threads(threads)
    try:
        together = logits_of(decoder, [whole])
        alone = {row: logits_of(decoder, [{row: n}], [row])[row] for row, n in whole.items()}
        one_by_one = logits_of(decoder, [{3: 1}] * 33, [3])
        in_chunks = logits_of(decoder, [{1: 7, 2: 3}, {1: 31, 0: 1}, {2: 13, 1: 1}, {1: 31}], [0, 1, 2])
    finally:
        torch.set_num_threads(1)
    for row, logits in together.items():
        torch.testing.assert_close(alone[row], logits, atol=0, rtol=0)
        for others in (one_by_one, in_chunks):
            if row in others:
                torch.testing.assert_close(others[row], logits, atol=0, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"norms": NormPlace.AROUND},
        {"mlp": DenseSpec(width=160, activation=Activation.GELU_TANH)},
        {"attention": replace(PLAIN, has_sinks=True)},
        {"attention": replace(PLAIN, qk_norm=QkNorm.PROJECTION)},
        {"attention": replace(PLAIN, head_dim=40, rope=None)},
    ],
    ids=str,
)
def test_a_layer_that_the_kernels_do_not_know_goes_op_by_op(change):
    decoder = decoder_of(PLAIN, torch.float32, Format.FLOAT32)
    spec = replace(decoder.spec, layers=(replace(decoder.spec.layers[0], **change),))
    other = Decoder(spec, make_dummy(spec, torch.float32, torch.device("cpu"), Packing(Format.FLOAT32, has_rows=False)))
    assert other._layers[0].fused is None
    assert logits_of(other, [{2: 16}], [2])[2].isfinite().all()


def test_without_packed_weights_there_is_no_fused_layer():
    assert decoder_of(PLAIN, torch.float32, None)._layers[0].fused is None
