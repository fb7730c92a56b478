"""Parquet traces: the same rows as JSON lines, and what is wrong is named."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from trace_strategies import calm, traces

from penstock.workload.parquet import read_parquet, write_parquet
from penstock.workload.readers import open_trace
from penstock.workload.trace import TraceError

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra: penstock[parquet]")
from pyarrow import parquet  # noqa: E402

ROWS = {"arrival_s": [0.0, 1.5], "input_tokens": [3, 4], "output_tokens": [5, 6]}


def file_of(folder, **columns):
    path = folder / "t.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    return path


@given(trace=traces())
@calm
def test_a_written_trace_comes_back_unchanged(tmp_path, trace):
    path = tmp_path / "t.parquet"
    assert write_parquet(path, trace) == len(list(trace))
    back = open_trace(path)
    assert back.header == trace.header
    assert list(back) == list(trace) == list(back)


def test_a_file_from_elsewhere_needs_three_columns_only(tmp_path):
    first, second = read_parquet(file_of(tmp_path, **ROWS))
    assert (first.arrival_s, second.input_tokens, second.output_tokens) == (0.0, 4, 6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arrival_s": None}, "no column arrival_s"),
        ({"clint": ["a", "b"]}, "unknown column clint"),
        ({"input_tokens": [3, -4]}, r"row 2: input_tokens is -4"),
        ({"output_tokens": ["x", "y"]}, r"row 1: Expected `int`, got `str` - at `\$.output_tokens`"),
        ({"arrival_s": [2.0, 1.0]}, r"row 2: arrival_s goes back"),
        ({"arrival_s": [2.0, None]}, r"row 2: arrival_s is null"),
        ({"arrival_s": [], "input_tokens": [], "output_tokens": []}, "no row"),
    ],
)
def test_a_wrong_file_names_row_and_column(tmp_path, changes, said):
    columns = {name: values for name, values in (ROWS | changes).items() if values is not None}
    with pytest.raises(TraceError, match=said):
        list(read_parquet(file_of(tmp_path, **columns)))


def test_a_file_that_was_cut_off_says_so(tmp_path):
    path = file_of(tmp_path, **ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TraceError, match="no Parquet file, or was cut off"):
        read_parquet(path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TraceError, match=r"pip install 'penstock\[parquet\]'"):
        read_parquet(tmp_path / "t.parquet")
