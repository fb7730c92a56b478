"""The file of measured choices: who believes it, what it may say, and that it changes speed and nothing else."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from penstock.core.errors import ConfigError
from penstock.models.weights import load_model
from penstock.ops import native
from penstock.ops.dispatch import Cuts
from penstock.ops.packed import PackedWeight
from penstock.ops.tuned import CPU_NAMES, TunedWeight
from penstock.runtime import kernel_table
from penstock.runtime.kernel_table import Key, Shape, Tuning, key_of, read_cuts, read_tables, write_cuts
from penstock.runtime.measure_kernels import measure, weights_of
from tests.models.paged_run import PagedRun

from .real import shrunk_config

CPU = torch.device("cpu")
HERE = key_of(CPU, torch.float32, is_native=False)
CHOICES = {Shape(64, 32): Cuts(2, None), Shape(64, 32, is_gated=True): Cuts(1, 8)}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a" / "table.json"
    write_cuts(path, HERE, CPU_NAMES, CHOICES)
    assert read_cuts(str(path), HERE) == CHOICES


def test_shapes_are_added_and_replaced_and_other_tables_stay(tmp_path):
    path = tmp_path / "table.json"
    other = Key("another device", HERE.kernels, HERE.dtype)
    write_cuts(path, other, CPU_NAMES, CHOICES)
    write_cuts(path, HERE, CPU_NAMES, CHOICES)
    write_cuts(path, HERE, CPU_NAMES, {Shape(64, 32): Cuts(None, None), Shape(1, 1): Cuts(3, 3)})
    assert read_cuts(str(path), HERE) == CHOICES | {Shape(64, 32): Cuts(None, None), Shape(1, 1): Cuts(3, 3)}
    assert read_cuts(str(path), other) == CHOICES


@pytest.mark.parametrize("wrong", ["device", "kernels", "dtype"])
def test_a_table_of_something_else_is_ignored_with_one_line(tmp_path, caplog, wrong):
    path = tmp_path / "table.json"
    key = {"device": HERE.device, "kernels": HERE.kernels, "dtype": HERE.dtype} | {wrong: "other"}
    write_cuts(path, Key(**key), CPU_NAMES, CHOICES)
    write_cuts(path, HERE, CPU_NAMES, {Shape(1, 1): Cuts(2, 2)})
    with caplog.at_level(logging.INFO):
        assert read_cuts(str(path), HERE) == {Shape(1, 1): Cuts(2, 2)}
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 tables of other devices, kernels or dtypes are ignored"
    ]


def test_without_a_file_nothing_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_table, "default_path", lambda: tmp_path / "absent.json")
    assert read_cuts("auto", HERE) == {}
    assert read_cuts("none", HERE) == {}
    with pytest.raises(ConfigError, match=r"cannot read the kernel table .* `penstock profile kernels` writes one"):
        read_cuts(str(tmp_path / "absent.json"), HERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.clear(), "is not a kernel table"),
        (lambda file: file.update(penstock_kernel_table=99), "has version 99"),
        (lambda file: file["tables"][0]["shapes"][0].update(second_from=None, third_from=3), "cannot begin"),
        (lambda file: file["tables"][0]["shapes"][0].update(second_from="x"), "is not a kernel table"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "table.json"
    write_cuts(path, HERE, CPU_NAMES, CHOICES)
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file))
    with pytest.raises(ConfigError, match=message) as refused:
        read_tables(path)
    assert "\n" not in str(refused.value)


def test_kernels_are_named_by_their_sources(tmp_path, monkeypatch):
    (tmp_path / "tuned.py").write_text("one")
    monkeypatch.setattr(kernel_table, "OPS", tmp_path)
    before = kernel_table.kernels_key(CPU, False)
    (tmp_path / "tuned.py").write_text("two")
    assert kernel_table.kernels_key(CPU, False) != before
    assert torch.__version__ in before


# --- a model ---
@pytest.fixture
def tiny_dir(tmp_path):
    """The bundled architecture, shrunk; weights are dummies."""
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    return tmp_path


def shapes_of(decoder):
    return {weights.shape for weights in weights_of(decoder)}


def logits_of(decoder):
    run = PagedRun(decoder, [[3, 9, 4, 60, 2, 7], [5, 5, 8]], 4)
    steps = [run.step(take) for take in ({0: 3}, {0: 1, 1: 2}, {0: 1, 1: 1}, {0: 1})]
    return torch.cat([logits for step in steps for logits in step.values()])


def test_a_table_changes_which_code_runs_and_not_what_comes_out(tiny_dir, caplog):
    plain = load_model(tiny_dir, dtype="float32", load_format="dummy")
    table = Tuning({shape: Cuts(2, 3) for shape in shapes_of(plain)}, 0)
    with caplog.at_level(logging.INFO):
        by_table = load_model(tiny_dir, dtype="float32", load_format="dummy", tune=table.apply)
    assert by_table.kernels["linear"] == "by table"
    assert all(isinstance(by_table.tensors[name], TunedWeight) for name in ("embed", "layers.0.mlp.down"))
    assert "go by the kernel table" in caplog.text
    torch.testing.assert_close(logits_of(by_table), logits_of(plain), atol=1e-5, rtol=1e-5)


def test_a_shape_that_the_table_does_not_know_stays_as_it_was_and_is_named(tiny_dir, caplog):
    shape = min(shapes_of(load_model(tiny_dir, dtype="float32", load_format="dummy")))
    with caplog.at_level(logging.INFO):
        decoder = load_model(tiny_dir, load_format="dummy", tune=Tuning({shape: Cuts(1, 1)}, 0).apply)
    tuned = {kernel_table.shape_of(n, tuple(t.shape)) for n, t in decoder.tensors.items() if isinstance(t, TunedWeight)}
    assert tuned == {shape}
    assert "the kernel table does not know" in caplog.text
    assert "`penstock profile kernels` measures them" in caplog.text


@pytest.mark.skipif(
    not native.cpu_flags().issuperset(native.AVX512.needed), reason="the C++ kernels do not run on this CPU"
)
def test_a_whole_layer_in_c_serves_the_rows_that_its_matrices_do(tiny_dir, monkeypatch):
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))
    native.prepare()
    (tiny_dir / "config.json").write_text(json.dumps(shrunk_config() | {"head_dim": 32}))
    options = {"dtype": "float32", "load_format": "dummy", "is_packed": True}
    plain = load_model(tiny_dir, **options)
    assert all(isinstance(weights.tensors[0], PackedWeight) for weights in weights_of(plain))
    by_table = load_model(tiny_dir, **options, tune=Tuning(dict.fromkeys(shapes_of(plain), Cuts(3, 4)), 0).apply)
    assert [layer.fused.tokens_stop for layer in by_table._layers] == [3] * len(by_table._layers)
    torch.testing.assert_close(logits_of(by_table), logits_of(plain), atol=1e-5, rtol=1e-5)


def test_measuring_times_what_serves_and_only_that(tiny_dir):
    decoder = load_model(tiny_dir, dtype="float32", load_format="dummy")
    weights = weights_of(decoder)[0]
    few, many = measure(weights, rows=(2, 6))
    assert [len(seconds) for seconds in few.seconds_by] == [3, 3, 3]
    assert [len(seconds) for seconds in many.seconds_by] == [0, 3, 3]
    assert all(seconds > 0 for by in few.seconds_by for seconds in by)
    assert {w.shape.is_gated for w in weights_of(decoder)} == {True, False}


def test_memory_of_matrices_in_two_forms_is_known_before(tiny_dir, tmp_path):
    decoder = load_model(tiny_dir, dtype="float32", load_format="dummy")
    path = tmp_path / "table.json"
    key = key_of(CPU, torch.float32, is_native=True)
    write_cuts(path, key, CPU_NAMES, dict.fromkeys(shapes_of(decoder), Cuts(3, None)))
    tuning = Tuning.read(str(path), decoder.spec, CPU, torch.float32, is_packed=True)
    assert tuning.added_bytes == sum(t.nbytes for w in weights_of(decoder) for t in w.tensors)
    assert Tuning.read(str(path), decoder.spec, CPU, torch.float32, is_packed=False).added_bytes == 0
