"""A trace through simulated instances: times are what arithmetic says, nothing is lost, all of it can be repeated."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.limits import QueueLimits
from penstock.policy.presets import PRESETS, build_policies
from penstock.sim.fleet import DISPATCHERS
from penstock.sim.run import Setup, fleet_of, run_of
from penstock.workload.kinds import Pacing
from penstock.workload.measure import summarise
from penstock.workload.records import Outcome
from penstock.workload.trace import Trace, TraceHeader, TraceRequest
from tests.sim.parts import Linear, hardware, poisson_trace


def simulate(trace, cost=None, **options):
    hard = {key: options.pop(key) for key in ("n_blocks", "max_rows") if key in options}
    preset = options.pop("preset", "default")
    setup = Setup(hardware=hardware(cost, **hard), policies=lambda: build_policies(preset), **options)
    fleet = fleet_of(setup, trace)
    fleet.run(trace)
    for instance in fleet.instances:
        instance.engine.scheduler.audit()
    return run_of(setup, trace, fleet), fleet


def one(input_tokens, output_tokens, at_s=0.0, **fields):
    return TraceRequest(arrival_s=at_s, input_tokens=input_tokens, output_tokens=output_tokens, **fields)


def trace_of(*rows):
    return Trace.of(TraceHeader(name="hand-made"), rows)


def test_a_single_request_takes_what_its_steps_take():
    run, _ = simulate(trace_of(one(20, 5, at_s=2.0)), Linear(step_s=1e-3, token_s=1e-4, row_s=1e-5))
    (record,) = run.records
    assert record.ttft_s == pytest.approx(1e-3 + 20 * 1e-4)
    assert record.tpot_s == pytest.approx(1e-3 + 1e-5)
    assert record.e2e_s == pytest.approx(record.ttft_s + 4 * record.tpot_s)


def test_look_ahead_hides_the_host_where_the_device_is_slower_and_not_where_it_is_faster():
    for step_s, host, wanted_s in ((2e-3, 5e-4, 2e-3), (1e-4, 5e-4, 5e-4)):
        run, _ = simulate(trace_of(one(4, 100)), Linear(step_s=step_s, token_s=0, row_s=0, host=host))
        assert run.records[0].tpot_s == pytest.approx(wanted_s, rel=0.03)


def test_waiting_for_one_server_is_as_long_as_queueing_theory_says():
    """Poisson arrivals, constant service, one at a time: an M/D/1 queue (Pollaczek and Khinchine)."""
    service_s, load = 1.0, 0.6
    trace = poisson_trace(8000, load / service_s, inputs=(4, 4), outputs=(1, 1), seed=2)
    run, _ = simulate(trace, Linear(step_s=service_s, token_s=0, row_s=0), max_rows=1)
    waits_s = [record.ttft_s - service_s for record in run.records]
    expected_s = load * service_s / (2 * (1 - load))
    assert sum(waits_s) / len(waits_s) == pytest.approx(expected_s, rel=0.08)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_instances=st.integers(1, 4),
    dispatch=st.sampled_from(sorted(DISPATCHERS)),
    preset=st.sampled_from(sorted(PRESETS)),
    n_blocks=st.integers(30, 200),
    are_lengths_hidden=st.booleans(),
    pacing=st.sampled_from(Pacing),
)
def test_every_request_ends_in_one_record_with_all_its_tokens(
    seed, n_instances, dispatch, preset, n_blocks, are_lengths_hidden, pacing
):
    trace = poisson_trace(60, rate_per_s=random.Random(seed).choice([20, 200, 2000]), seed=seed, sessions=9)
    run, fleet = simulate(
        trace, n_blocks=n_blocks, n_instances=n_instances, dispatch=dispatch, preset=preset,
        are_lengths_hidden=are_lengths_hidden, pacing=pacing,
    )  # fmt: skip
    assert [record.index for record in run.records] == list(range(60))
    for record, asked in zip(run.records, trace, strict=True):
        assert record.outcome is Outcome.OK
        assert record.completion_tokens == asked.output_tokens
        assert record.prompt_tokens == asked.input_tokens
        assert len(record.token_s) == asked.output_tokens
        assert record.sent_s <= record.token_s[0] <= record.token_s[-1] == record.end_s
        assert list(record.token_s) == sorted(record.token_s)
    assert all(not instance.engine.has_work for instance in fleet.instances)


def test_of_a_long_trace_the_first_requests_have_the_times_of_all_tokens(monkeypatch):
    monkeypatch.setattr("penstock.sim.fleet.MOST_TIMED", 3)
    run, _ = simulate(poisson_trace(6, 50, outputs=(10, 20)))
    assert [record.has_gaps for record in run.records] == [True] * 3 + [False] * 3
    assert all(len(record.token_s) == (record.output_tokens if record.has_gaps else 2) for record in run.records)
    assert summarise(run).itl.n == sum(record.output_tokens - 1 for record in run.records[:3])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    def figures(seed):
        trace = poisson_trace(200, 100, seed=3, sessions=20)
        return repr(simulate(trace, n_instances=3, seed=seed, n_blocks=80)[0])

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_a_later_turn_comes_after_the_answer_and_a_pause():
    rows = [one(8, 10, 0.0, session="a"), one(20, 3, 0.001, session="a", turn=1, pause_s=0.5)]
    run, _ = simulate(trace_of(*rows), pacing=Pacing.SESSIONS)
    assert run.records[1].sent_s == pytest.approx(run.records[0].end_s + 0.5)
    assert run.records[1].cached_tokens == 8  # the turn before is the beginning of its prompt, and was cached


def test_more_instances_serve_more_and_the_least_loaded_is_fairer_than_turns():
    trace = poisson_trace(400, 400, outputs=(1, 60), seed=4)
    p99 = {}
    for n, dispatch in ((1, "round-robin"), (4, "round-robin"), (4, "least-loaded")):
        summary = summarise(simulate(trace, n_instances=n, dispatch=dispatch, max_rows=4)[0])
        p99[n, dispatch] = summary.ttft.p99_s
    assert p99[4, "round-robin"] < p99[1, "round-robin"] / 2
    assert p99[4, "least-loaded"] < p99[4, "round-robin"]


def test_what_a_full_queue_refuses_is_recorded_as_refused():
    limits = QueueLimits(max_queued_requests=2)
    run, _ = simulate(poisson_trace(50, 1e5, seed=1), max_rows=1, limits=limits)
    outcomes = {outcome: sum(record.outcome is outcome for record in run.records) for outcome in Outcome}
    assert outcomes[Outcome.REFUSED] > 30
    assert outcomes[Outcome.OK] + outcomes[Outcome.REFUSED] == 50


def test_an_interrupted_simulation_has_the_records_of_what_ended():
    trace = poisson_trace(50, 100)
    setup = Setup(hardware=hardware(), policies=lambda: build_policies())
    fleet = fleet_of(setup, trace)

    def stop(n, at_s):
        if n == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.run(trace, stop)
    run = run_of(setup, trace, fleet)
    assert len(run.records) == 20
    assert summarise(run).ok == 20


def test_a_host_tier_takes_what_is_preempted_and_gives_it_back():
    trace = poisson_trace(80, 1e4, inputs=(20, 40), outputs=(30, 60), seed=6)
    runs = {}
    for host_blocks in (0, 400):
        hard = hardware(Linear(token_s=1e-3), n_blocks=60)
        hard = replace(hard, n_host_blocks=(host_blocks,) if host_blocks else ())
        setup = Setup(hardware=hard, policies=lambda: build_policies(slots={"preempt": "cheapest"}))
        fleet = fleet_of(setup, trace)
        fleet.run(trace)
        counters = fleet.instances[0].engine.counters()
        runs[host_blocks] = run_of(setup, trace, fleet), counters
        fleet.instances[0].engine.scheduler.audit()
    (without, plain), (with_tier, counters) = runs[0], runs[400]
    assert plain["preemptions_total"] > 10
    assert counters["swaps_in_total"] == counters["swaps_out_total"] > 10
    assert with_tier.records[-1].end_s < without.records[-1].end_s  # nothing was computed twice
    assert [r.completion_tokens for r in with_tier.records] == [r.completion_tokens for r in without.records]


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_costs_that_are_some_times_as_high_make_latencies_as_high(factor):
    """With all requests there at once, time has no other scale than that of the costs."""
    trace = poisson_trace(60, 1e9, outputs=(2, 30), seed=4)
    ends = {}
    for scale in (1.0, factor):
        cost = Linear(step_s=scale * 1e-3, token_s=scale * 1e-5, row_s=scale * 1e-5, host=scale * 1e-4)
        setup = Setup(hardware=hardware(cost), policies=build_policies)
        fleet = fleet_of(setup, trace)
        fleet.run(trace)
        ends[scale] = [record.end_s for record in run_of(setup, trace, fleet).records]
    assert ends[factor] == pytest.approx([factor * end_s for end_s in ends[1.0]], rel=1e-3)


def test_costs_that_policies_know_stay_true_over_steps_that_are_taken_in_one_go():
    hard = replace(hardware(Linear(row_s=3e-5), n_blocks=800), known_cost=Linear(row_s=3e-5))
    setup, trace = Setup(hardware=hard, policies=build_policies), poisson_trace(80, 20, outputs=(2, 200), seed=8)
    fleet = fleet_of(setup, trace)
    fleet.run(trace)
    counters = fleet.instances[0].engine.counters()
    assert counters["decode_cost_factor"] == pytest.approx(1.0, abs=1e-3)
    assert counters["prefill_cost_factor"] == pytest.approx(1.0, abs=1e-3)
    unknown = fleet_of(replace(setup, hardware=replace(hard, known_cost=None)), trace)
    unknown.run(trace)
    assert fleet.records == unknown.records  # nobody is preempted here, so nobody asks
