"""Every command that reads a trace names what is wrong with it in one line, before it does anything."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from penstock.cli import app

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5,100,10\n2023-11-16 18:15:47.5,100,10\n"
OURS = '{"penstock_trace":1,"name":"t"}\n{"arrival_s":1,"input_tokens":3,"output_tokens":4}\n'
WRONG = {
    "missing-column": (AZURE.replace("GeneratedTokens", "Answer"), "line 1: no column GeneratedTokens"),
    "negative-time": (OURS.replace(":1,", ":-1,", 2).replace(":-1,", ":1,", 1), "line 2: arrival_s is -1"),
    "unsorted": (AZURE + "2023-11-16 18:15:40.0,1,1\n", "line 4: TIMESTAMP goes back"),
    "empty": ("", "is empty"),
    "no-request": (OURS.splitlines()[0] + "\n", "no request"),
    "truncated": (OURS[:-20], "line 2: Input data was truncated"),
    "binary": ("\x00\x01" * 500, "line 1: not text"),
    "huge-number": (OURS.replace(":3,", ":9999999999,"), "line 2: input_tokens is 9999999999"),
}
COMMANDS = {
    "show": ("trace", "show"),
    "convert": ("trace", "convert", "--out", "out.jsonl"),
    "fit": ("trace", "fit"),
    "replay": ("replay", "--url", "http://127.0.0.1:9", "--trace"),
    "simulate": ("simulate", "--trace"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_trace_is_one_line_and_status_2(tmp_path, monkeypatch, command, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.txt").write_text(content)
    ran = CliRunner().invoke(app, [*command, "wrong.txt"])
    assert ran.exit_code == 2, ran.output
    assert ran.stderr.startswith("error: wrong.txt")
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.txt"]
