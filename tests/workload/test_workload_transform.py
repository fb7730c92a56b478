"""Transformations change what they say and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from trace_strategies import calm, traces

from penstock.core.request import Objective
from penstock.workload import transform
from penstock.workload.trace import Trace, TraceError, TraceHeader, TraceRequest


def at(*times_s: float, **changes: object) -> Trace:
    rows = [TraceRequest(arrival_s=time_s, input_tokens=40, output_tokens=9, **changes) for time_s in times_s]  # type: ignore[arg-type]
    return Trace.of(TraceHeader(name="t", block_tokens=16), rows)


def arrivals(trace: Trace) -> list[float]:
    return [request.arrival_s for request in trace]


@given(trace=traces(), factor=st.sampled_from([0.5, 2.0, 4.0]))
@calm
def test_scaling_divides_every_time_and_touches_nothing_else(trace, factor):
    scaled = transform.scale_rate(trace, factor)
    assert arrivals(scaled) == [time_s / factor for time_s in arrivals(trace)]
    assert [replace(request, arrival_s=0) for request in scaled] == [replace(request, arrival_s=0) for request in trace]
    assert scaled.header.steps == (f"time divided by {factor:g}, pauses kept",)


def test_pauses_are_scaled_only_when_asked():
    trace = at(0, 4, pause_s=6.0)
    assert [request.pause_s for request in transform.scale_rate(trace, 2, scales_pauses=True)] == [3, 3]


def test_a_slice_is_half_open_and_starts_at_zero():
    assert arrivals(transform.slice_time(at(0, 1, 2, 3, 4), 1, 4)) == [0, 1, 2]


def test_take_and_keep():
    trace = at(0, 1, 2, 3)
    assert arrivals(transform.take(trace, 2)) == [0, 1]
    kept = transform.keep(trace, lambda request: request.arrival_s > 1, "late ones")
    assert arrivals(kept) == [2, 3]
    assert kept.header.steps == ("keep late ones",)


def test_tiles_follow_each_other_at_the_same_mean_rate_and_share_nothing():
    trace = at(0, 1, 3, session="s", block_hashes=(7, 8))
    tiled = list(transform.tile(trace, 2))
    assert [request.arrival_s for request in tiled] == [0, 1, 3, 4.5, 5.5, 7.5]
    assert not {request.session for request in tiled[:3]} & {request.session for request in tiled[3:]}
    assert not set(tiled[0].block_hashes) & set(tiled[3].block_hashes)
    assert tiled[3].block_hashes == tiled[4].block_hashes


@given(traces(), traces())
@calm
def test_a_mix_has_every_request_once_in_order(one, two):
    mixed = list(transform.mix([one, two]))
    assert [request.arrival_s for request in mixed] == sorted(arrivals(one) + arrivals(two))
    assert sum(request.input_tokens for request in mixed) == sum(
        request.input_tokens for trace in (one, two) for request in trace
    )
    shared = {request.session for request in one} & {request.session for request in mixed if request.session}
    assert shared <= {request.session for request in one}


def test_mixed_traces_name_their_clients_and_keep_sessions_apart():
    one, two = at(0, session="s"), at(1, session="s")
    first, second = transform.mix([one, two])
    assert first.session != second.session
    assert first.client == second.client == "t"


def test_clipping_shortens_lengths_hashes_and_ids():
    trace = at(0, block_hashes=(1, 2, 3), prompt_ids=tuple(range(40)))
    (request,) = transform.clip(trace, max_input_tokens=17, max_output_tokens=4)
    assert (request.input_tokens, request.output_tokens) == (17, 4)
    assert request.block_hashes == (1, 2)
    assert request.prompt_ids == tuple(range(17))


def test_an_objective_is_given_to_every_request():
    limits = Objective(ttft_s=2.0)
    assert {request.objective for request in transform.set_objective(at(0, 1), limits)} == {limits}


def test_limits_are_filled_in_where_there_are_none():
    strict, loose = Objective(ttft_s=0.1), Objective(ttft_s=1.0)
    first, second = at(0, 1)
    trace = Trace.of(TraceHeader(name="two"), [replace(first, objective=strict), second])
    assert [request.objective for request in transform.fill_objective(trace, loose)] == [strict, loose]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda trace: transform.scale_rate(trace, 0), "scale a rate by 0"),
        (lambda trace: transform.slice_time(trace, 2, 2), "the stop later"),
        (lambda trace: transform.take(trace, 0), "take 0 requests"),
        (lambda trace: transform.tile(trace, 0), "tile a trace 0 times"),
        (lambda trace: transform.clip(trace, max_input_tokens=0, max_output_tokens=1), "clip to 0"),
        (lambda trace: transform.mix([]), "no traces"),
    ],
)
def test_an_impossible_transformation_says_why(change, said):
    with pytest.raises(TraceError, match=said):
        change(at(0, 1))
