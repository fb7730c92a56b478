"""When requests go out, under virtual time: an event loop whose clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import calm, traces

from penstock.workload.kinds import Pacing
from penstock.workload.records import Outcome, ReplayError, RequestRecord
from penstock.workload.schedule import BodyMaker, Schedule
from penstock.workload.trace import Trace, TraceHeader, TraceRequest


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer, moves the clock to it."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_s += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


def run_virtually(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@dataclass
class SlowServer:
    """Answers `takes_s` after it was asked; keeps what was sent when."""

    takes_s: float
    sent: list[tuple[int, float]] = field(default_factory=list)

    async def send(self, index: int, request: TraceRequest, body: bytes, scheduled_s: float) -> RequestRecord:
        now_s = asyncio.get_running_loop().time
        self.sent.append((index, now_s()))
        outcome = Outcome.OK
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            outcome = Outcome.TIMED_OUT
        return RequestRecord(
            index=index,
            scheduled_s=scheduled_s,
            sent_s=self.sent[-1][1],
            end_s=now_s(),
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            outcome=outcome,
        )


def play(trace: Trace, server: SlowServer, **options: Any) -> tuple[RequestRecord, ...]:
    async def main() -> tuple[RequestRecord, ...]:
        now_s = asyncio.get_running_loop().time
        return await Schedule(trace=trace, sender=server, bodies=BodyMaker(model="m"), now_s=now_s, **options).run()

    return run_virtually(main())


def turns(*rows: tuple[float, str | None, float | None]) -> Trace:
    return Trace.of(
        TraceHeader(name="t"),
        [
            TraceRequest(arrival_s=arrival_s, input_tokens=1, output_tokens=1, session=session, pause_s=pause_s)
            for arrival_s, session, pause_s in rows
        ],
    )


def test_a_slow_server_does_not_delay_an_open_loop():
    server = SlowServer(takes_s=100.0)
    records = play(turns((0, None, None), (0.25, None, None), (3, None, None)), server)
    assert server.sent == [(0, 0.0), (1, 0.25), (2, 3.0)]
    assert [record.end_s for record in records] == [100.0, 100.25, 103.0]


def test_twice_the_speed_halves_every_gap():
    server = SlowServer(takes_s=1.0)
    play(turns((0, None, None), (4, None, None)), server, speed=2.0)
    assert server.sent == [(0, 0.0), (1, 2.0)]


def test_a_turn_starts_its_pause_after_the_answer_to_the_turn_before():
    server = SlowServer(takes_s=10.0)
    trace = turns((0, "a", None), (1, "b", None), (2, "a", 5.0), (3, "b", None), (4, None, None))
    play(trace, server, pacing=Pacing.SESSIONS)
    # a's second turn: 10 s answer, 5 s pause; b's has no pause: the gap of 2 s between its arrivals is taken
    assert sorted(server.sent) == [(0, 0.0), (1, 1.0), (2, 15.0), (3, 13.0), (4, 4.0)]


def test_what_runs_when_time_is_over_is_given_up_and_the_rest_is_not_sent():
    server = SlowServer(takes_s=10.0)
    trace = turns((0, "a", None), (1, "a", 1.0), (2, None, None), (30, None, None))
    records = play(trace, server, pacing=Pacing.SESSIONS, max_total_s=5.0)
    assert [record.outcome for record in records] == [
        Outcome.TIMED_OUT,
        Outcome.NOT_SENT,
        Outcome.TIMED_OUT,
        Outcome.NOT_SENT,
    ]
    assert records[0].end_s == 5.0


def test_a_pause_that_outlasts_the_replay_is_not_waited_for():
    records = play(turns((0, "a", None), (1, "a", 1e6)), SlowServer(takes_s=1.0), pacing=Pacing.SESSIONS, max_total_s=9)
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.NOT_SENT]


def test_a_stop_ends_the_replay_at_once_with_a_record_for_every_request():
    async def main() -> tuple[RequestRecord, ...]:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        loop.call_at(3.0, stopped.set)
        trace = turns((0, "a", None), (1, "a", 1.0), (2, None, None), (30, None, None))
        return await Schedule(
            trace=trace, sender=SlowServer(takes_s=10.0), bodies=BodyMaker(model="m"), now_s=loop.time, stopped=stopped
        ).run()

    records = run_virtually(main())
    assert [record.outcome for record in records] == [Outcome.TIMED_OUT] * 3 + [Outcome.NOT_SENT]
    assert max(record.end_s or 0 for record in records) == 3.0
    assert records[3].error == "the replay was stopped"


@given(trace=traces(min_size=0), pacing=st.sampled_from(Pacing), takes_s=st.floats(0, 1e5), limit_s=st.floats(1, 1e6))
@calm
def test_every_request_ends_in_exactly_one_record(trace, pacing, takes_s, limit_s):
    server = SlowServer(takes_s)
    records = play(trace, server, pacing=pacing, max_total_s=limit_s)
    rows = list(trace)
    assert [record.index for record in records] == list(range(len(rows)))
    assert [record.input_tokens for record in records] == [request.input_tokens for request in rows]
    unsent = {record.index for record in records if record.outcome is Outcome.NOT_SENT}
    assert unsent.isdisjoint(index for index, _ in server.sent)
    assert len(unsent) + len(server.sent) == len(rows)


@given(trace=traces(), takes_s=st.floats(0, 1e5))
@calm
def test_an_open_loop_sends_every_request_at_its_time(trace, takes_s):
    server = SlowServer(takes_s)
    play(trace, server, max_total_s=1e7)
    due_s = [request.arrival_s for request in trace]
    # a loop calls what is due within the resolution of its clock, a nanosecond
    assert [sent_s for _, sent_s in sorted(server.sent)] == pytest.approx(due_s, abs=2e-9)


@pytest.mark.parametrize("options", [{"speed": 0}, {"max_total_s": -1.0}, {"speed": float("inf")}])
def test_an_impossible_schedule_is_refused(options):
    with pytest.raises(ReplayError, match="give a positive number"):
        play(turns((0, None, None)), SlowServer(1.0), **options)
