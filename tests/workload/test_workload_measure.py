"""Figures against vectors worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import calm

from penstock.core.request import Objective
from penstock.workload.measure import jain, summarise
from penstock.workload.records import Outcome, RequestRecord, Run, RunHeader

HEADER = RunHeader(trace="t", url="u", model="m")


def record(index: int, sent_s: float, *token_s: float, **changes: object) -> RequestRecord:
    fields: dict[str, object] = {
        "index": index,
        "scheduled_s": sent_s,
        "sent_s": sent_s,
        "token_s": token_s,
        "end_s": token_s[-1] if token_s else sent_s,
        "outcome": Outcome.OK,
        "input_tokens": 10,
        "output_tokens": len(token_s),
    }
    return RequestRecord(**(fields | changes))  # type: ignore[arg-type]


def run_of(*records: RequestRecord) -> Run:
    return Run(header=HEADER, records=records)


def test_figures_of_two_requests_worked_out_by_hand():
    summary = summarise(run_of(record(0, 0.0, 1.0, 1.5, 3.0), record(1, 2.0, 2.5, 4.0)))
    assert summary.duration_s == 4.0
    assert summary.requests_per_s == 0.5
    assert summary.output_tokens_per_s == 1.25
    assert summary.ttft.mean_s == pytest.approx(0.75)  # 1.0 and 0.5
    assert summary.ttft.p50_s == pytest.approx(0.75)
    assert summary.ttft.p90_s == pytest.approx(0.95)
    assert summary.tpot.p50_s == pytest.approx(1.25)  # 1.0 and 1.5
    assert (summary.itl.n, summary.itl.p50_s, summary.itl.max_s) == (3, 1.5, 1.5)  # .5, 1.5, 1.5
    assert summary.e2e.p50_s == pytest.approx(2.5)  # 3.0 and 2.0
    assert summary.queue is None


def test_goodput_counts_requests_that_keep_all_their_limits():
    limit = Objective(ttft_s=1.0, tpot_s=0.5, deadline_s=4.0)
    records = (
        record(0, 0.0, 1.0, 1.5, objective=limit),  # keeps all, each exactly at its limit
        record(1, 0.0, 1.1, 1.2, objective=limit),  # first token late
        record(2, 0.0, 0.5, 2.0, objective=limit),  # tokens too slow
        record(3, 0.0, *(0.45 * n for n in range(1, 11)), objective=limit),  # past its deadline
        record(4, 0.0, 0.5, objective=limit, outcome=Outcome.CUT),  # not answered in full
        record(5, 0.0, 0.5, objective=limit),  # a single token has no TPOT
    )
    summary = summarise(run_of(*records))
    assert summary.attainment_frac == pytest.approx(2 / 6)
    assert summary.goodput_per_s == pytest.approx(2 / 4.5)
    assert summary.outcomes == {"cut": 1, "ok": 5}


def test_a_request_without_limits_takes_those_given():
    run = run_of(record(0, 0.0, 1.0, 2.0), record(1, 0.0, 3.0, 4.0))
    assert summarise(run).attainment_frac == 1.0
    assert summarise(run, Objective(ttft_s=2.0)).attainment_frac == 0.5


def test_attainment_by_weight_counts_what_a_request_is_worth():
    heavy, light = Objective(ttft_s=1.0, weight=3.0), Objective(ttft_s=1.0)
    run = run_of(record(0, 0.0, 0.5, objective=heavy), record(1, 0.0, 2.0, objective=light))
    assert summarise(run).weighted_attainment_frac == pytest.approx(0.75)


def test_tokens_are_counted_by_the_server_when_it_packs_several_into_an_event():
    summary = summarise(run_of(record(0, 0.0, 1.0, 2.0, completion_tokens=5, output_tokens=5)))
    assert summary.tpot.p50_s == pytest.approx(0.25)
    assert summary.output_tokens_per_s == pytest.approx(2.5)
    assert summary.short_answers == 0


def test_short_answers_lag_and_queue_time_are_reported():
    summary = summarise(run_of(record(0, 1.0, 2.0, output_tokens=3, scheduled_s=0.75, queue_ms=40.0)))
    assert summary.short_answers == 1
    assert summary.lag.max_s == pytest.approx(0.25)
    assert summary.queue.p50_s == pytest.approx(0.04)


def test_a_run_in_which_nothing_was_answered_has_no_latency_and_no_goodput():
    unsent = replace(record(0, 0.0), outcome=Outcome.NOT_SENT, sent_s=None, end_s=None)
    summary = summarise(run_of(unsent))
    assert (summary.ttft, summary.e2e, summary.lag) == (None, None, None)
    assert (summary.goodput_per_s, summary.attainment_frac, summary.requests) == (0.0, 0.0, 1)


def test_clients_are_compared_by_limits_kept_and_by_pace():
    limit = Objective(ttft_s=1.0)
    records = (
        record(0, 0.0, 1.0, 2.0, client="a", objective=limit),  # 1 s per token
        record(1, 0.0, 2.0, 4.0, client="b", objective=limit),  # late, 2 s per token
    )
    summary = summarise(run_of(*records))
    assert [(share.client, share.kept_frac, share.mean_pace_s) for share in summary.clients] == [
        ("a", 1.0, 1.0),
        ("b", 0.0, 2.0),
    ]
    assert summary.jain_kept == pytest.approx(0.5)
    assert summary.jain_pace == pytest.approx(1.5**2 / (2 * 1.25))


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20))
@calm
def test_jain_is_between_one_over_n_and_one(values):
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9


def test_jain_at_its_ends():
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert jain([0.0, 0.0]) == 1.0
    assert jain([5.0]) is None


@pytest.mark.parametrize(
    ("own", "fallback", "said"),
    [
        ([Objective(), Objective()], Objective(), "none"),
        ([Objective(), Objective()], Objective(ttft_s=1.0, tpot_s=0.05), "TTFT 1 s, TPOT 0.05 s"),
        ([Objective(deadline_s=9.0, weight=2.0), Objective(deadline_s=9.0)], Objective(), "deadline 9 s"),
        ([Objective(ttft_s=1.0), Objective()], Objective(ttft_s=2.0), "2 different ones"),
    ],
)
def test_a_summary_says_which_limits_it_counts_by(own, fallback, said):
    records = (record(place, 0.0, 1.0, objective=objective) for place, objective in enumerate(own))
    assert summarise(run_of(*records), fallback).limits == said
