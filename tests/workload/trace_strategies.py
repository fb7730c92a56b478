"""Traces for property tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.trace import Trace, TraceHeader, TraceRequest

# a busy machine is no failure: no deadline, and slow drawing is allowed
calm = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
counts = st.integers(0, 5000)
times_s = st.floats(0, 1e6)
names = st.text(max_size=8)


@st.composite
def trace_requests(draw, arrival_s: float) -> TraceRequest:
    return TraceRequest(
        arrival_s=arrival_s,
        input_tokens=draw(counts),
        output_tokens=draw(counts),
        client=draw(names),
        session=draw(st.none() | names),
        turn=draw(st.integers(0, 3)),
        pause_s=draw(st.none() | times_s),
        category=draw(names),
        objective=draw(st.just(NO_OBJECTIVE) | st.builds(Objective, ttft_s=st.none() | st.floats(0.01, 9))),
        block_hashes=tuple(draw(st.lists(st.integers(0, 2**63 - 1), max_size=3))),
        prompt_ids=draw(st.none() | st.lists(st.integers(0, 99), max_size=3).map(tuple)),
        prompt_text=draw(st.none() | names),
    )


@st.composite
def traces(draw, min_size: int = 1) -> Trace:
    arrivals_s = sorted(draw(st.lists(times_s, min_size=min_size, max_size=8)))
    rows = [draw(trace_requests(arrival_s)) for arrival_s in arrivals_s]
    header = TraceHeader(name=draw(names), seed=draw(st.none() | st.integers(0, 9)), block_tokens=16)
    return Trace.of(header, rows)
