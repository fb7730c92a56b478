"""Conditions on requests as they are written on the command line."""

from __future__ import annotations

import pytest

from penstock.workload.conditions import parse_condition
from penstock.workload.trace import TraceError, TraceRequest

CHAT = TraceRequest(arrival_s=2.0, input_tokens=100, output_tokens=0, client="a", category="chat", session="s", turn=1)
API = TraceRequest(arrival_s=3.0, input_tokens=3000, output_tokens=7, category="api", pause_s=4.0)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("category=api", [API]),
        ("category != api", [CHAT]),
        ("client=", [API]),
        ("session!=", [CHAT]),
        ("input_tokens<=100", [CHAT]),
        ("input_tokens<100", []),
        ("output_tokens>0", [API]),
        ("turn>=1", [CHAT]),
        ("arrival_s=3", [API]),
        ("pause_s<9", [API]),
        ("elapsed_s!=1", []),
    ],
)
def test_a_condition_keeps_what_it_says(text, kept):
    assert list(filter(parse_condition(text), [CHAT, API])) == kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sesion=3", "give one of client, session"),
        ("category", "is not a condition"),
        ("category<api", "names have no order"),
        ("input_tokens<=many", "input_tokens is a number, and 'many' is none"),
    ],
)
def test_what_is_no_condition_says_how_one_looks(text, said):
    with pytest.raises(TraceError, match=said):
        parse_condition(text)
