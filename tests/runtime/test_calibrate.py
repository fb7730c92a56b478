"""Calibration of a model's softmax: what is recorded, what is kept, and decode steps that go by it."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from penstock.core.errors import ConfigError
from penstock.models.softmax import SoftmaxLayers
from penstock.models.weights import load_model
from penstock.ops import native
from penstock.ops.unified_max import SoftmaxCalibration, UnifiedMax
from penstock.runtime import calibrate
from penstock.runtime.calibrate import (
    CalibrationFile,
    checkpoint_key,
    fit_layers,
    read_calibration,
    record,
    with_unified_softmax,
    write_calibration,
)
from tests.models.paged_run import PagedRun

from .real import BUNDLED, shrunk_config

PROMPTS = [[3, 9, 4, 60, 2, 7, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], [5, 5, 8]]
CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(
    not native.cpu_flags().issuperset(native.AVX512.needed), reason="the C++ kernels do not run on this CPU"
)


@pytest.fixture
def tiny_dir(tmp_path):
    """The bundled architecture, shrunk, with heads that the C++ kernels know; weights are dummies."""
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config() | {"head_dim": 32}))
    return tmp_path


@pytest.fixture
def kept_here(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "path_of", lambda model: tmp_path / "kept" / f"{checkpoint_key(model)}.json")


@pytest.fixture
def _native(monkeypatch):
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))
    native.prepare()


def tiny(tiny_dir, **options):
    return load_model(tiny_dir, dtype="float32", load_format="dummy", **options)


def keep(model, layers):
    file = CalibrationFile(checkpoint=checkpoint_key(model), n_prompts=2, n_tokens=20, layers=layers)
    write_calibration(calibrate.path_of(model), file)
    return file


def test_every_score_that_a_token_sees_is_counted_once(tiny_dir):
    decoder = tiny(tiny_dir)
    heads = decoder.spec.layers[0].attention.q_heads
    for histogram in record(decoder, [*PROMPTS, []]):
        assert sum(histogram.peaks) == heads * (17 + 3)
        assert sum(histogram.scores) == heads * (17 * 18 + 3 * 4) // 2
        assert histogram.least_peak <= histogram.greatest_peak


def test_a_window_hides_scores(tiny_dir):
    config = json.loads((tiny_dir / "config.json").read_text())
    config |= {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4, "use_sliding_window": True}
    (tiny_dir / "config.json").write_text(json.dumps(config | {"max_window_layers": 0}))
    decoder = tiny(tiny_dir)
    assert decoder.spec.layers[0].attention.window_tokens == 4
    (histogram, *_) = record(decoder, [PROMPTS[0]])
    assert sum(histogram.scores) == decoder.spec.layers[0].attention.q_heads * (1 + 2 + 3 + 4 * 14)


def test_recording_changes_nothing_and_needs_a_prompt(tiny_dir):
    decoder = tiny(tiny_dir)
    before = PagedRun(decoder, PROMPTS, 4).step({0: 17})[0]
    record(decoder, PROMPTS)
    torch.testing.assert_close(PagedRun(decoder, PROMPTS, 4).step({0: 17})[0], before, atol=0, rtol=0)
    with pytest.raises(ConfigError, match="at least one prompt"):
        record(decoder, [[]])


def test_what_is_kept_is_read_for_the_same_weights_only(tiny_dir, kept_here):
    with pytest.raises(ConfigError, match="run `penstock profile softmax --model"):
        read_calibration(tiny_dir)
    file = keep(tiny_dir, record(tiny(tiny_dir), PROMPTS))
    assert read_calibration(tiny_dir) == file
    other = file.__class__(checkpoint="other", n_prompts=1, n_tokens=1, layers=file.layers)
    write_calibration(calibrate.path_of(tiny_dir), other)
    with pytest.raises(ConfigError, match="other weights"):
        read_calibration(tiny_dir)
    calibrate.path_of(tiny_dir).write_text("{")
    with pytest.raises(ConfigError, match="is no calibration"):
        read_calibration(tiny_dir)


def test_a_checkpoint_is_named_by_what_is_in_it(tiny_dir):
    before = checkpoint_key(tiny_dir)
    (tiny_dir / "model.safetensors").write_bytes(b"weights")
    with_weights = checkpoint_key(tiny_dir)
    (tiny_dir / "model.safetensors").write_bytes(b"Weights")
    assert len({before, with_weights, checkpoint_key(tiny_dir)}) == 3


def test_longer_contexts_leave_less_room(tiny_dir):
    decoder = tiny(tiny_dir)
    layers = record(decoder, PROMPTS)
    short, long = fit_layers(layers, decoder.spec, 128)[0].unified, fit_layers(layers, decoder.spec, 2**20)[0].unified
    assert long.high < short.high
    assert long.low > short.low


def test_without_a_kernel_softmax_stays_exact_and_says_so(tiny_dir, kept_here, monkeypatch, caplog):
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))
    decoder = tiny(tiny_dir)
    keep(tiny_dir, record(decoder, PROMPTS))
    with caplog.at_level(logging.WARNING):
        assert with_unified_softmax(decoder, tiny_dir, 128) is decoder
    assert "--native-kernels has one" in caplog.text


@needs_kernels
@pytest.mark.usefixtures("_native")
@pytest.mark.parametrize("is_packed", [False, True], ids=["op by op", "whole layers"])
def test_decode_steps_give_what_they_gave_and_count_their_rows(tiny_dir, kept_here, is_packed):
    decoder = tiny(tiny_dir, is_packed=is_packed)
    keep(tiny_dir, record(tiny(tiny_dir), PROMPTS))
    unified = with_unified_softmax(decoder, tiny_dir, 128)
    assert all((layer.fused is not None) == is_packed for layer in unified._layers)
    found, expected = [], []
    for model, into in ((unified, found), (decoder, expected)):
        run = PagedRun(model, PROMPTS, 4)
        run.step({0: 10, 1: 1})
        into += [run.step(take) for take in ({0: 1, 1: 1}, {0: 1}, {0: 1, 1: 1})]
    for step, same in zip(found, expected, strict=True):
        for row, logits in step.items():
            torch.testing.assert_close(logits, same[row], atol=1e-5, rtol=1e-5)
    heads = decoder.spec.layers[0].attention.q_heads
    assert unified._attentions.counts_Y2.tolist() == [[0, 5 * heads]] * 3
    assert not unified.review()


@needs_kernels
@pytest.mark.usefixtures("_native")
@pytest.mark.parametrize("is_packed", [False, True], ids=["op by op", "whole layers"])
def test_a_layer_that_falls_back_too_often_is_given_up_and_stays_right(tiny_dir, is_packed, caplog):
    decoder = tiny(tiny_dir, is_packed=is_packed)
    far_off = SoftmaxCalibration(UnifiedMax(phi=-500.0, low=-60.0, high=60.0), 0.0)
    layers = SoftmaxLayers([SoftmaxCalibration(None, 999.0), far_off, far_off], CPU)
    unified = decoder.attending_by(layers)
    expected = PagedRun(decoder, PROMPTS, 4)
    run = PagedRun(unified, PROMPTS, 4)
    for take in ({0: 10, 1: 1}, {0: 1, 1: 1}):
        for logits, same in zip(run.step(take).values(), expected.step(take).values(), strict=True):
            torch.testing.assert_close(logits, same, atol=1e-5, rtol=1e-5)
    heads = decoder.spec.layers[0].attention.q_heads
    assert layers.counts_Y2.tolist() == [[0, 0], [2 * heads] * 2, [2 * heads] * 2]
    assert not unified.review()  # too few rows to say
    layers.counts_Y2[1:] += 20_000
    with caplog.at_level(logging.WARNING):
        assert unified.review()
        assert not unified.review()
    assert [record.getMessage().split(" goes back")[0] for record in caplog.records] == ["layer 1", "layer 2"]
    counted = layers.counts_Y2.clone()
    for logits, same in zip(run.step({0: 1}).values(), expected.step({0: 1}).values(), strict=True):
        torch.testing.assert_close(logits, same, atol=1e-5, rtol=1e-5)
    assert torch.equal(layers.counts_Y2, counted)


@needs_kernels
@pytest.mark.usefixtures("_native")
def test_the_bundled_model_chooses_otherwise_in_bfloat16_only_between_neighbours(kept_here):
    """Where the largest logit is another, the two are equal or next to each other among the numbers of the dtype."""
    decoder = load_model(BUNDLED, is_packed=True)
    text = [(7919 * i) % 4000 + 5 for i in range(400)]
    keep(BUNDLED, record(load_model(BUNDLED), [text]))
    unified = with_unified_softmax(decoder, BUNDLED, 2048)
    logits = []
    for model in (decoder, unified):
        run = PagedRun(model, [text], 16)
        run.step({0: 100})
        logits.append(torch.cat([run.step({0: 1})[0] for _ in range(300)]))
    is_other = logits[0].argmax(-1) != logits[1].argmax(-1)
    best_two = logits[0].topk(2, dim=-1).values[is_other]
    assert is_other.float().mean() < 0.01
    assert ((best_two[:, 0] - best_two[:, 1]) <= 2**-7 * best_two[:, 0].abs()).all()
    assert unified._attentions.counts_Y2[:, 0].tolist() == [0] * 8
