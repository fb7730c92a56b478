"""The demonstration of FlashDecoding++: what it compares is the same, and how it judges a table."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from penstock.demonstrations import flashdecoding_plus_plus as demonstration
from penstock.ops import native
from penstock.ops.dispatch import Cuts, Timing
from penstock.runtime import calibrate, measure_kernels


def test_answers_are_the_same_with_everything_on(tmp_path, monkeypatch):
    for module in (demonstration, calibrate):
        monkeypatch.setattr(module, "path_of", lambda model: tmp_path / "softmax.json")
    monkeypatch.setattr(measure_kernels, "LEAST_CALL_S", 1e-4)
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))
    shown = StringIO()
    demonstration.show_answers(Console(file=shown, width=200), tokens=3)
    assert "48 of 48 the same" in shown.getvalue()


def test_a_layer_takes_what_its_matrices_take_as_they_are_chosen():
    timings = [[Timing(1, ([1.0], [2.0], [3.0])), Timing(8, ([], [5.0], [4.0]))]] * 2
    cuts = [Cuts(2, None), Cuts(2, 4)]
    assert demonstration.layer_seconds(timings, cuts, 0) == 2.0
    assert demonstration.layer_seconds(timings, cuts, 1) == 9.0


@pytest.mark.parametrize("name", demonstration.LAYERS)
def test_a_layer_has_four_matrices_that_fit_each_other(name):
    qkv, out, gate_up, down = demonstration.LAYERS[name]
    assert qkv[1] == gate_up[1] == out[0] == down[0]
    assert gate_up[0] == 2 * down[1]
    assert qkv[0] > out[1]
