"""Requests that would come too late are refused at the door, and goodput holds under any load."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import msgspec
import pytest

from penstock.core.clock import VirtualClock
from penstock.core.errors import Overloaded
from penstock.core.plan import Chunk, DecodeGroup, Plan
from penstock.core.request import Objective, Request
from penstock.engine.loop import build_engine
from penstock.policy.admit.in_time import InTime
from penstock.policy.contracts import check_admit
from penstock.policy.presets import build_policies
from penstock.sim.run import Setup, fleet_of, run_of
from penstock.workload.measure import summarise
from penstock.workload.trace import Trace, TraceHeader, TraceRequest
from tests.engine.oracle import OracleExecutor
from tests.policy.views import make_seq, make_view
from tests.sim.parts import Linear, hardware

LIMITS = Objective(ttft_s=0.5, tpot_s=0.02)
COST = Linear(step_s=2e-3, token_s=1e-4, row_s=1e-4)  # 40 prompt tokens take 4 ms, so 200 requests/s at the very most


def seen(policy, n_steps=50, step_s=0.1, chunk_tokens=100):
    """The policy after so many steps, each with a chunk, at an even pace."""
    view = make_view()
    for k in range(n_steps):
        plan = Plan(decode=DecodeGroup((0,), 1), chunks=(Chunk(row=1, start=0, stop=chunk_tokens),))
        policy.on_step(plan, msgspec.structs.replace(view, now_s=k * step_s))
    return policy


def asking(prompt_tokens=100, arrival_s=0.0, **limits):
    return Request(id="new", prompt=[1] * prompt_tokens, arrival_s=arrival_s, objective=Objective(**limits))


def busy_view(queued_tokens=900, now_s=0.0):
    return make_view(
        waiting=[make_seq("queued", prompt_tokens=queued_tokens)], decoding=[make_seq("other", row=0, outputs=1)],
        now_s=now_s,
    )  # fmt: skip


def test_a_first_token_is_expected_behind_all_prompt_tokens_that_are_there():
    policy = seen(InTime(share=1.0))  # a millisecond per prompt token; 1,000 tokens and two steps: 1.2 s
    assert policy.late_by_s(asking(ttft_s=1.0), busy_view()) == pytest.approx(0.2)
    assert policy.late_by_s(asking(ttft_s=1.3), busy_view()) is None
    assert policy.late_by_s(asking(ttft_s=1.3), busy_view(now_s=0.2)) == pytest.approx(0.1)  # it has waited already
    assert policy.late_by_s(asking(prompt_tokens=400, ttft_s=1.3), busy_view()) == pytest.approx(0.2)


def test_only_a_share_of_the_limit_is_spent():
    assert seen(InTime(share=0.5)).late_by_s(asking(ttft_s=2.0), busy_view()) == pytest.approx(0.2)


def test_steps_longer_than_the_time_per_token_refuse_too():
    policy = seen(InTime(share=1.0))
    assert policy.late_by_s(asking(tpot_s=0.09), busy_view(1)) == pytest.approx(0.01)
    assert policy.late_by_s(asking(tpot_s=0.11), busy_view(1)) is None


def test_limits_of_the_options_hold_where_a_request_has_none():
    policy = seen(InTime(share=1.0, ttft_s=1.0, tpot_s=10.0))
    assert policy.late_by_s(asking(), busy_view()) == pytest.approx(0.2)
    assert policy.late_by_s(asking(ttft_s=5.0), busy_view()) is None
    assert seen(InTime()).late_by_s(asking(), busy_view(10**6)) is None


def test_a_pause_is_not_taken_for_a_step():
    policy = seen(InTime(share=1.0))
    policy.on_finish(make_seq("last"), make_view())
    policy.on_step(Plan(chunks=(Chunk(row=0, start=0, stop=100),)), make_view(now_s=1000.0))
    assert policy.late_by_s(asking(tpot_s=0.11), busy_view(1)) is None


def test_the_contract_holds_when_it_has_seen_steps_too():
    check_admit(seen(InTime(ttft_s=1e-3, tpot_s=1e-3)), busy_view())


def test_the_engine_refuses_with_the_time_to_wait_and_counts_it():
    policy = seen(InTime())
    executor = OracleExecutor()
    executor.allocate((64,))
    engine = build_engine(executor, (64,), replace(build_policies(), admit=policy), clock=VirtualClock(5.0))
    engine.add(Request(id="first", prompt=[1, 2, 3], arrival_s=5.0, objective=Objective(tpot_s=1e-3)))  # nobody runs
    engine.step()
    with pytest.raises(Overloaded, match="latency objective") as refused:
        engine.add(Request(id="second", prompt=[1, 2, 3], arrival_s=5.0, objective=Objective(tpot_s=1e-3)))
    assert refused.value.retry_after_s >= 1.0
    assert engine.counters()["requests_refused_objective_total"] == 1
    assert engine.counters()["requests_accepted_total"] == 1


def poisson(rate_per_s, seed, seconds=12.0):
    rng, at_s, rows = random.Random(seed), 0.0, []
    while at_s < seconds:
        at_s += rng.expovariate(rate_per_s)
        tokens = {"input_tokens": rng.randint(20, 60), "output_tokens": rng.randint(5, 40)}
        rows.append(TraceRequest(arrival_s=at_s, objective=LIMITS, **tokens))
    return Trace.of(TraceHeader(name="poisson"), rows)


def served(preset, rate_per_s, seed, cost=COST):
    setup = Setup(hardware=hardware(cost, n_blocks=4000, max_rows=64), policies=partial(build_policies, preset))
    trace = poisson(rate_per_s, seed)
    fleet = fleet_of(setup, trace)
    fleet.run(trace)
    return summarise(run_of(setup, trace, fleet), LIMITS)


@pytest.mark.parametrize(("seed", "slowness"), [(1, 2), (2, 4)])
def test_goodput_holds_under_overload_where_it_falls_without(seed, slowness):
    cost = Linear(COST.step_s * slowness, COST.token_s * slowness, COST.row_s * slowness)
    rate_per_s = 100 / slowness
    peak = max(served("default", rate_per_s * share, seed, cost).goodput_per_s for share in (0.75, 1.0))
    assert served("in-time", 3 * rate_per_s, seed, cost).goodput_per_s > 0.85 * peak
    assert served("default", 3 * rate_per_s, seed, cost).goodput_per_s < 0.5 * peak


def test_nobody_is_refused_under_a_load_that_is_held():
    summary = served("in-time", 30, seed=4)
    assert summary.outcomes == {"ok": summary.requests}
