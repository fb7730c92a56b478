"""Our trace format: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from trace_strategies import calm, traces

from penstock.workload.trace import Trace, TraceError, TraceHeader, TraceRequest, read_trace, write_trace

HEADER = '{"name":"t","penstock_trace":1}\n'
ROW = '{"arrival_s":1,"input_tokens":3,"output_tokens":4}\n'


@given(trace=traces())
@calm
def test_a_written_trace_comes_back_unchanged_however_often_it_is_walked(tmp_path, trace):
    path = tmp_path / "t.jsonl"
    assert write_trace(path, trace) == len(list(trace))
    back = read_trace(path)
    assert back.header == trace.header
    assert list(back) == list(trace) == list(back)


def test_a_trace_is_streamed_not_read_whole(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(HEADER + ROW + "not json\n")
    rows = iter(read_trace(path))
    assert next(rows).input_tokens == 3
    with pytest.raises(TraceError, match=r"t\.jsonl, line 3"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{}\n", r"line 1: .*`name`"),
        ('{"name":"t","penstock_trace":2}\n', "this release reads version 1"),
        (HEADER, "no request"),
        (HEADER + '{"arrival_s":1,"output_tokens":4}\n', r"line 2: .*`input_tokens`"),
        (HEADER + ROW.replace("3", '"3"'), r"line 2: .*input_tokens"),
        (HEADER + ROW.replace("1", "-1"), r"line 2: arrival_s is -1"),
        (HEADER + ROW.replace("3", "-3"), r"line 2: input_tokens is -3"),
        (HEADER + ROW + ROW.replace("1", "0.5"), r"line 3: arrival_s goes back from 1 to 0.5"),
        (HEADER + ROW.replace("3", "9999999999"), r"line 2: input_tokens is 9999999999: no model"),
        (HEADER + ROW.replace("4}", '4,"clint":"a"}'), r"line 2: .*unknown field `clint`"),
        (HEADER + ROW + ROW[:20], r"line 3: .* the last line .* cut off"),
        (HEADER + ROW.replace("4}", '4,"objective":{"ttft_s":-1}}'), r"line 2: ttft_s is -1"),
    ],
)
def test_a_wrong_trace_says_where_and_what(tmp_path, text, said):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        list(read_trace(path))


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.workload.trace.MAX_LINE_BYTES", 1000)
    path = tmp_path / "t.jsonl"
    path.write_text(HEADER + ROW + "a" * 2000)
    with pytest.raises(TraceError, match=r"line 3: longer than"):
        list(read_trace(path))


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(TraceError, match=r"cannot read the trace .*No such file"):
        read_trace(tmp_path / "none.jsonl")


def test_a_trace_in_memory_is_in_order_of_arrival():
    rows = [TraceRequest(arrival_s=time_s, input_tokens=1, output_tokens=1) for time_s in (0, 2, 1)]
    with pytest.raises(TraceError, match="request 2: arrival_s goes back from 2 to 1"):
        Trace.of(TraceHeader(name="t"), rows)
