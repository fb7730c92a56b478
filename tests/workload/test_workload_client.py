"""Taking a streamed answer apart, however the bytes are cut."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import calm

from penstock.workload.client import Answer, sse_data
from penstock.workload.records import Outcome, ReplayError
from penstock.workload.trace import TraceRequest

STREAM = (
    b": keep-alive\n\n"
    b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
    b"event: other\r\n"
    b'data:{"choices":[{"text":"\xc3\xa4","finish_reason":"length"}],"usage":null,"metrics":null,"error":null}\r\n\r\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2},"metrics":{"queue_time_ms":null}}\n\n'
    b"data: [DONE]\n\n"
)
REQUEST = TraceRequest(arrival_s=0, input_tokens=3, output_tokens=2)


def payloads(chunks: list[bytes]) -> list[bytes]:
    async def arriving() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def main() -> list[bytes]:
        return [data async for data in sse_data(arriving())]

    return asyncio.run(main())


def answer_to(*payloads: bytes) -> Answer:
    answer = Answer()
    for number, payload in enumerate(payloads):
        answer.take(payload, float(number))
    return answer


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
@calm
def test_payloads_do_not_depend_on_how_the_bytes_arrive(cuts):
    edges = [0, *cuts, len(STREAM)]
    found = payloads([STREAM[start:stop] for start, stop in itertools.pairwise(edges)])
    assert found == payloads([STREAM])
    assert len(found) == 4
    record = answer_to(*found).record(0, REQUEST, 0.0, 0.0, 9.0)
    assert (record.outcome, record.token_s, record.prompt_tokens, record.queue_ms) == (Outcome.OK, (0.0, 1.0), 3, None)


def test_an_endless_line_is_refused_before_it_fills_the_memory():
    with pytest.raises(ReplayError, match="a line of more than"):
        payloads([b"data: " + b"x" * (1 << 20)] * 6)


@pytest.mark.parametrize(
    "last",
    [
        b"[DONE]",
        b'{"choices":[],"usage":{"completion_tokens":1}}',
        b'{"choices":[{"text":"","finish_reason":"stop"}]}',
    ],
)
def test_any_sign_of_the_end_makes_an_answer_complete(last):
    answer = answer_to(b'{"choices":[{"text":"a"}]}', last)
    assert answer.record(0, REQUEST, 0.0, 0.0, 1.0).outcome is Outcome.OK


def test_a_running_count_is_not_the_end():
    answer = answer_to(b'{"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}')
    record = answer.record(0, REQUEST, 0.0, 0.0, 1.0)
    assert record.outcome is Outcome.CUT
    assert record.completion_tokens == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [(b'{"message":"no memory","code":500}', "no memory"), (b'"no memory"', "no memory"), (b'{"code":7}', "7")],
)
def test_an_error_event_says_what_the_server_said(error, said):
    answer = answer_to(b'{"error":' + error + b"}", b"[DONE]")
    assert answer.outcome is Outcome.ERROR
    assert said in answer.error


def test_the_first_failure_is_the_cause():
    answer = answer_to(b'{"error":"first"}', b'{"error":"second"}')
    assert answer.error == "first"
