"""Readers of published traces, on files made here in their formats."""

from __future__ import annotations

import pytest

from penstock.core.errors import UnknownName
from penstock.workload.kinds import FORMATS
from penstock.workload.readers import (
    READERS,
    open_trace,
    read_azure,
    read_burstgpt,
    read_mooncake,
    write_burstgpt,
)
from penstock.workload.trace import TraceError, read_trace, write_trace

OLD = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,API log
45,ChatGPT,417,276,700,Conversation log
"""
NEW = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,s1,3,ChatGPT,472,18,490,Conversation log
9,,1.5,GPT-4,1087,9,1096,API log
60,s1,4,ChatGPT,600,20,620,Conversation log
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
MOONCAKE = """{"timestamp": 0, "input_length": 600, "output_length": 50, "hash_ids": [0, 1]}
{"timestamp": 1500, "input_length": 700, "output_length": 49, "hash_ids": [0, 2], "extra": 1}
"""


def file_of(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_both_column_sets_of_burstgpt_are_read(tmp_path):
    trace = read_burstgpt(file_of(tmp_path, OLD), spread_seed=None)
    first, failed, third = trace
    assert (first.arrival_s, first.input_tokens, first.output_tokens) == (5.0, 472, 18)
    assert (first.category, first.model, first.session) == ("conversation", "ChatGPT", None)
    assert failed.is_failed
    assert failed.category == "api"
    assert third.arrival_s == 45.0
    assert len(list(trace)) == 3
    assert trace.tally.wrong_totals == 1  # of the last walk, however often it was walked

    one, api, two = read_burstgpt(file_of(tmp_path, NEW), spread_seed=None)
    assert (one.session, one.turn, one.pause_s, one.elapsed_s) == ("s1", 0, None, 3.0)
    assert (two.session, two.turn, two.pause_s) == ("s1", 1, 60 - 8)
    assert (api.session, api.elapsed_s) == (None, 1.5)


def test_columns_are_found_by_name_in_any_order_and_may_be_quoted(tmp_path):
    lines = [line.split(",") for line in NEW.splitlines()]
    turned = "\ufeff" + "\n".join(",".join(f'"{cell}"' for cell in reversed(cells)) for cells in lines) + "\n"
    assert list(open_trace(file_of(tmp_path, turned, "u.csv"))) == list(open_trace(file_of(tmp_path, NEW)))


def test_rows_of_one_second_are_spread_over_it_or_left_together(tmp_path):
    path = file_of(tmp_path, OLD)
    spread = [request.arrival_s for request in read_burstgpt(path, spread_seed=1)]
    assert [int(time_s) for time_s in spread] == [5, 45, 45]
    assert 45 < spread[1] < spread[2] < 46
    assert spread == [request.arrival_s for request in read_burstgpt(path, spread_seed=1)]


@pytest.mark.parametrize("text", [OLD.replace("700", "693"), NEW])
def test_csv_to_json_lines_to_csv_loses_nothing(tmp_path, text):
    path, lines, back = file_of(tmp_path, text), tmp_path / "t.jsonl", tmp_path / "back.csv"
    assert write_trace(lines, open_trace(path)) == 3
    assert write_burstgpt(back, open_trace(lines)) == 3
    assert back.read_text() == text


def test_azure_times_keep_their_hundred_nanoseconds(tmp_path):
    first, second = open_trace(file_of(tmp_path, AZURE))
    assert (first.arrival_s, second.arrival_s) == (0.0, 4.314579)
    assert (second.input_tokens, second.output_tokens) == (396, 109)


def test_azure_times_of_2024_name_their_zone(tmp_path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 00:00:01+00:00,1,2\n"
    )
    assert [request.arrival_s for request in open_trace(file_of(tmp_path, text))] == [0.0, 0.99007]


def test_mooncake_keeps_milliseconds_and_prefix_identity(tmp_path):
    trace = open_trace(file_of(tmp_path, MOONCAKE, "t.jsonl"))
    assert trace.header.block_tokens == 512
    first, second = trace
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.5)
    assert (first.block_hashes, second.block_hashes) == ((0, 1), (0, 2))


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (read_burstgpt, "", "is empty"),
        (read_burstgpt, OLD.splitlines()[0] + "\n", "no row"),
        (read_burstgpt, OLD.replace("Request tokens", "Prompt"), r"t\.csv, line 1: no column Request tokens; found"),
        (read_burstgpt, OLD.replace("5,ChatGPT", "-5,ChatGPT"), r"line 2: Timestamp is '-5', expected 0 or more"),
        (read_burstgpt, OLD.replace("472", "4.5"), r"line 2: Request tokens is '4.5', expected a whole number"),
        (read_burstgpt, OLD.replace("472", ""), r"line 2: Request tokens is '', expected a number"),
        (read_burstgpt, OLD.replace("45,GPT", "4,GPT"), r"line 3: Timestamp goes back from 5 to 4"),
        (read_burstgpt, OLD.replace("API log", "other"), r"line 3: Log Type is 'other', expected Conversation log or"),
        (read_azure, AZURE.replace("2023-11-16 18:15:50", "16/11/2023"), r"line 3: TIMESTAMP is .*expected a UTC time"),
        (read_azure, AZURE.replace("18:15:50", "18:15:40"), r"line 3: TIMESTAMP goes back"),
        (read_mooncake, "", "is empty"),
        (read_mooncake, MOONCAKE.replace("input_length", "in"), r"line 1: .*`input_length`"),
        (read_mooncake, MOONCAKE.replace("1500", "-1"), r"line 2: timestamp is -1, expected milliseconds"),
        (read_mooncake, MOONCAKE.replace('"timestamp": 0', '"timestamp": 9999'), r"line 2: timestamp goes back"),
        (read_mooncake, MOONCAKE.replace("600", "-3"), r"line 1: input_length is -3"),
        (read_azure, AZURE + "2023-11-16 18:15:59.0,7", r"line 4: the row ends after 2 of 3 columns, before Generated"),
        (read_azure, AZURE + "2023-11-16 18:15:59.0,7,9999999999\n", r"line 4: GeneratedTokens .* at most 100,000,000"),
        (open_trace, "hello\n", r"line 1: 'hello' is the start of no known trace"),
        (open_trace, "", "is empty"),
        (open_trace, AZURE.replace("GeneratedTokens", "Generated"), r"line 1: no column GeneratedTokens; found TIMES"),
        (open_trace, '{"arrival_s": 1, "input_tokens": 2}\n', "line 1: a request, where the header .* should be"),
    ],
)
def test_a_wrong_trace_names_file_line_and_field(tmp_path, read, text, said):
    with pytest.raises(TraceError, match=said):
        list(read(file_of(tmp_path, text)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (AZURE.encode() + b"2023-11-16 18:15:59.0,7,\xff\n", r"line 4: byte 24 is 0xff, which is no UTF-8 text"),
        (AZURE.encode() + b"2023-11-16 18:15:59.0,7,\0\n", r"line 4: holds a zero byte"),
        (AZURE.encode() + b"1" * 200_000, r"line 4: field larger than field limit"),
        (b"\x00\x01\xfe" * 99, "line 1: not text"),
        (b"\x1f\x8b\x08" + b"a" * 99, r"compressed \(gzip\): unpack it first"),
        (b"PAR1" + b"a" * 99, "is no Parquet file, or was cut off|need pyarrow"),
    ],
)
def test_bytes_that_are_no_text_are_one_error_that_names_the_line(tmp_path, content, said):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=said):
        list(open_trace(path))


def test_a_folder_or_a_pipe_is_no_trace(tmp_path):
    with pytest.raises(TraceError, match="no plain file"):
        open_trace(tmp_path)


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    with pytest.raises(UnknownName, match="azure, burstgpt, mooncake, parquet, penstock"):
        open_trace(file_of(tmp_path, OLD), "sharegpt")


def test_our_own_format_is_recognised(tmp_path):
    lines = tmp_path / "t.jsonl"
    write_trace(lines, open_trace(file_of(tmp_path, AZURE)))
    assert list(open_trace(lines)) == list(read_trace(lines))
    assert read_trace(lines).header.steps == ("read Azure LLM csv",)


def test_the_command_line_names_every_format_that_is_read():
    assert tuple(READERS) == FORMATS
