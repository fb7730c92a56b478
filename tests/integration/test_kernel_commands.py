"""`penstock profile kernels` and `softmax` on the bundled model, and engines that go by what they wrote."""

from __future__ import annotations

import logging

import pytest

from penstock import LLM, SamplingParams
from penstock.kernel_commands import spans
from penstock.ops import native
from penstock.ops.dispatch import Cuts
from penstock.runtime import calibrate, measure_kernels
from penstock.runtime.kernel_table import read_tables


def greedy(**options) -> list[list[int]]:
    prompts = [[5, 90, 17, 1033], [2001, 8], [300 + n for n in range(40)]]
    with LLM(dtype="float32", kv_memory="16MiB", threads=1, **options) as llm:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=12, temperature=0.0), use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def test_what_is_measured_is_written_and_used(run_cli, tmp_path, caplog):
    code, out, err = run_cli("profile", "kernels", "--dtype", "float32", "--threads", "1", "--out", "k.json")
    assert code == 0, err
    assert "4096 x 256" in out
    (table,) = read_tables(tmp_path / "k.json")
    assert table.dtype == "float32"
    assert {(row.outputs, row.inputs) for row in table.shapes} == {
        (512, 256), (256, 256), (1536, 256), (256, 768), (4096, 256)
    }  # fmt: skip
    with caplog.at_level(logging.INFO):
        by_table = greedy(kernel_table=str(tmp_path / "k.json"))
    assert "go by the kernel table" in caplog.text
    assert by_table == greedy(kernel_table="none")


def test_profile_without_a_name_is_that_of_steps(run_cli):
    code, out, err = run_cli("profile", "--help")
    assert code == 0, err
    assert "steps" in out
    assert "kernels" in out
    code, _, err = run_cli("profile", "--max-running", "0")
    assert code == 2
    assert "--max-running" in err


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        (Cuts(None, None), ("1-", "-", "-")),
        (Cuts(2, 17), ("1", "2-16", "17-")),
        (Cuts(1, 1), ("-", "-", "1-")),
        (Cuts(4, 4), ("1-3", "-", "4-")),
    ],
)
def test_spans_are_written_as_people_write_them(cuts, expected):
    assert spans(cuts) == expected


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(measure_kernels, "LEAST_CALL_S", 1e-4)


def test_a_softmax_is_calibrated_kept_and_decoded_with(run_cli, tmp_path, monkeypatch, caplog):
    code, _, err = run_cli("serve", "--softmax", "sharp")
    assert code == 2
    assert "unknown softmax 'sharp'" in err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("def add(a, b):\n    return a + b\n" * 40)
    code, out, err = run_cli("profile", "softmax", "--prompts", "mine.txt", "--threads", "1")
    assert code == 0, err
    assert "rows' largest scores" in out
    code, _, err = run_cli("profile", "softmax", "--prompts", "absent.txt")
    assert code == 2
    assert "cannot read the prompts absent.txt" in err
    (kept,) = (tmp_path / "penstock").glob("softmax-*.json")
    monkeypatch.delenv("XDG_CACHE_HOME")  # where the C++ kernels are compiled already
    monkeypatch.setattr(calibrate, "path_of", lambda model: kept)
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))
    with caplog.at_level(logging.INFO):
        found = greedy(softmax="unified", native_kernels=True)
    if native.core("unified_attention") is not None:
        assert "a fixed maximum in 8 of 8 layers (native)" in caplog.text
    assert found == greedy(softmax="exact", native_kernels=True)
