"""A replay against a real server on a real socket: every request of the trace ends in exactly one record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fake_completions_server import FakeServer, serving

from penstock.core.request import Objective
from penstock.workload.client import Counts
from penstock.workload.kinds import Pacing
from penstock.workload.records import Outcome, ReplayError, Run
from penstock.workload.replay import ReplayOptions, replay
from penstock.workload.trace import Trace, TraceHeader, TraceRequest


def trace_of(*requests: TraceRequest) -> Trace:
    return Trace.of(TraceHeader(name="test"), requests)


def requests(count: int, gap_s: float = 0.0) -> list[TraceRequest]:
    return [TraceRequest(arrival_s=place * gap_s, input_tokens=5, output_tokens=4) for place in range(count)]


def run_against(server: FakeServer, trace: Trace, **options: object) -> Run:
    async def main() -> Run:
        async with serving(server) as url:
            return await replay(trace, ReplayOptions(url=url, **options))  # type: ignore[arg-type]

    return asyncio.run(main())


def always(kind: str) -> Callable[[int, dict[str, object]], str]:
    return lambda number, body: kind


def test_an_answer_is_recorded_with_every_token_and_what_the_server_says():
    server = FakeServer()
    run = run_against(server, trace_of(*requests(3)), label="fcfs")
    assert [record.index for record in run.records] == [0, 1, 2]
    assert (run.header.model, run.header.label) == ("tiny", "fcfs")
    for record in run.records:
        assert record.outcome is Outcome.OK
        assert len(record.token_s) == record.completion_tokens == 4
        assert (record.prompt_tokens, record.cached_tokens, record.queue_ms) == (5, 3, 12.5)
        assert record.scheduled_s <= record.sent_s <= record.token_s[0] <= record.token_s[-1] <= record.end_s


def test_a_body_asks_for_exactly_the_output_of_the_trace():
    server = FakeServer()
    limit = Objective(ttft_s=0.5)
    run_against(
        server,
        trace_of(TraceRequest(arrival_s=0, input_tokens=7, output_tokens=9, client="a", session="s", objective=limit)),
        extra={"temperature": 0.5},
    )
    (body,) = server.bodies
    prompt = body.pop("prompt")
    assert len(prompt) == 7
    assert all(3 <= token < 256 for token in prompt)
    assert body.pop("objective")["ttft_s"] == 0.5
    assert body == {
        "model": "tiny",
        "max_tokens": 9,
        "ignore_eos": True,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "a",
    }
    assert server.headers[0]["X-Session-Affinity"] == "s"


@pytest.mark.parametrize(
    ("kind", "outcome", "said"),
    [
        ("crlf", Outcome.OK, None),
        ("no_last_newline", Outcome.OK, None),
        ("no_usage", Outcome.OK, None),
        ("short", Outcome.OK, None),
        ("busy", Outcome.REFUSED, "HTTP 503: the queue is full"),
        ("bad", Outcome.ERROR, "HTTP 400: no such thing"),
        ("error", Outcome.ERROR, "out of memory"),
        ("garbage", Outcome.ERROR, "not a completion chunk"),
        ("cut", Outcome.CUT, "Error"),
        ("silent_end", Outcome.CUT, "without a finish reason"),
    ],
)
def test_however_an_answer_ends_there_is_one_record_that_says_so(kind, outcome, said):
    run = run_against(FakeServer(behaviour=always(kind)), trace_of(*requests(2)))
    assert [record.outcome for record in run.records] == [outcome, outcome]
    for record in run.records:
        assert (record.error is None) if said is None else (said in record.error)
        assert record.end_s is not None


def test_a_refusal_keeps_the_time_after_which_to_retry():
    (record,) = run_against(FakeServer(behaviour=always("busy")), trace_of(*requests(1))).records
    assert record.retry_after_s == 2.5


def test_what_arrived_before_an_error_is_kept():
    (record,) = run_against(FakeServer(behaviour=always("error")), trace_of(*requests(1))).records
    assert len(record.token_s) == 1


def test_failures_do_not_touch_the_other_requests():
    kinds = ("ok", "busy", "error", "cut")
    server = FakeServer(behaviour=lambda number, body: kinds[body["max_tokens"] - 4])
    rows = [TraceRequest(arrival_s=0, input_tokens=3, output_tokens=4 + place % 4) for place in range(40)]
    counts = Counts()

    async def main() -> Run:
        async with serving(server) as url:
            return await replay(trace_of(*rows), ReplayOptions(url=url), counts)

    records = asyncio.run(main()).records
    assert [record.index for record in records] == list(range(40))
    wanted = (Outcome.OK, Outcome.REFUSED, Outcome.ERROR, Outcome.CUT)
    assert [record.outcome for record in records] == [wanted[place % 4] for place in range(40)]
    assert (counts.sent, counts.ended, counts.failed) == (40, 40, 30)


def test_a_recorded_failure_is_sent_with_one_token_of_output():
    server = FakeServer()
    run = run_against(server, trace_of(TraceRequest(arrival_s=0, input_tokens=3, output_tokens=0)))
    assert server.bodies[0]["max_tokens"] == 1
    assert run.records[0].is_ok


def test_turns_of_a_session_share_their_beginning():
    server = FakeServer()
    rows = [
        TraceRequest(arrival_s=0, input_tokens=10, output_tokens=1, session="a"),
        TraceRequest(arrival_s=0, input_tokens=30, output_tokens=1, session="a", turn=1, pause_s=0),
    ]
    run_against(server, trace_of(*rows), pacing=Pacing.SESSIONS)
    first, second = (body["prompt"] for body in server.bodies)
    assert second[:10] == first


def test_no_server_is_one_clear_error():
    with pytest.raises(ReplayError, match=r"no server answers at http://127.0.0.1:9 .*penstock serve"):
        asyncio.run(replay(trace_of(*requests(1)), ReplayOptions(url="http://127.0.0.1:9")))


@pytest.mark.parametrize("models", [{"data": []}, {"detail": "no"}, [1]])
def test_a_server_that_names_no_model_needs_one_on_the_command_line(models):
    with pytest.raises(ReplayError, match="names no model"):
        run_against(FakeServer(models=models), trace_of(*requests(1)))
    assert run_against(FakeServer(models=models), trace_of(*requests(1)), model="mine").header.model == "mine"


def test_a_thousand_streams_at_once_all_end_in_a_record():
    run = run_against(FakeServer(), trace_of(*requests(1000)))
    assert [record.index for record in run.records] == list(range(1000))
    assert {record.outcome for record in run.records} == {Outcome.OK}
