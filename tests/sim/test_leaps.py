"""Steps taken in one go are those that would have been taken one by one: the same plans, to the block and the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.executor import StateKind
from penstock.core.plan import Plan
from penstock.core.view import Observer
from penstock.policy.batch.decode_first import DecodeFirst
from penstock.policy.order.fcfs import FirstComeFirstServed
from penstock.policy.presets import PRESETS, build_policies
from penstock.sim.fleet import DISPATCHERS
from penstock.sim.run import Setup, fleet_of
from penstock.workload.kinds import Pacing
from tests.sim.parts import Linear, hardware, poisson_trace


class Notes:
    """Every plan of an engine; those of a leap one by one."""

    def __init__(self, engine, may_leap: bool) -> None:
        self.plans: list[Plan] = []
        self.n_leapt = 0
        executor = engine._executor
        self._submit, self._leap = executor.submit, executor.leap
        executor.submit, executor.leap = self.submit, self.leap
        if not may_leap:
            engine.steps_one_by_one()

    def submit(self, plan):
        self.plans.append(plan)
        return self._submit(plan)

    def leap(self, leap):
        self.n_leapt += leap.steps
        for step in range(leap.steps):
            grows = tuple(grow for at, grow in leap.grows if at == step)
            ends = leap.ends if step == 0 else ()
            self.plans.append(Plan(decode=leap.decode, id=leap.first_id + step, ends=ends, grows=grows))
        self._leap(leap)


def run(trace, setup, may_leap):
    fleet = fleet_of(setup, trace)
    notes = [Notes(instance.engine, may_leap) for instance in fleet.instances]
    fleet.run(trace)
    for instance in fleet.instances:
        instance.engine.scheduler.audit()
    counters = [instance.engine.counters() for instance in fleet.instances]
    return fleet.records, notes, counters


def windowed(hard, window_tokens=12):
    (state,) = hard.facts.states
    state = replace(state, name="win", kind=StateKind.WINDOWED, layers=(2, 3), window_tokens=window_tokens,
                    chunk_tokens=16)  # fmt: skip
    paged = replace(hard.facts.states[0], layers=(0, 1))
    return replace(hard, facts=replace(hard.facts, states=(paged, state)), n_blocks=hard.n_blocks * 2)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rate_per_s=st.sampled_from([2.0, 30.0, 300.0]),
    n_blocks=st.sampled_from([30, 80, 400]),
    n_instances=st.integers(1, 3),
    dispatch=st.sampled_from(sorted(DISPATCHERS)),
    preset=st.sampled_from(sorted(PRESETS)),
    sessions=st.sampled_from([0, 5]),
    pacing=st.sampled_from(list(Pacing)),
    has_windows=st.booleans(),
    host=st.sampled_from([0.0, 4e-4, 3e-3]),
    are_lengths_hidden=st.booleans(),
)
def test_leaps_change_nothing(
    seed, rate_per_s, n_blocks, n_instances, dispatch, preset, sessions, pacing, has_windows, host, are_lengths_hidden
):
    hard = hardware(Linear(host=host), n_blocks=n_blocks)
    trace = poisson_trace(40, rate_per_s, outputs=(1, 60), seed=seed, sessions=sessions)
    setup = Setup(
        hardware=windowed(hard) if has_windows else hard, policies=lambda: build_policies(preset), dispatch=dispatch,
        n_instances=n_instances, pacing=pacing, are_lengths_hidden=are_lengths_hidden,
    )  # fmt: skip
    leapt, leapt_notes, leapt_counters = run(trace, setup, may_leap=True)
    stepped, stepped_notes, counters = run(trace, setup, may_leap=False)
    assert leapt == stepped  # the times of all tokens, too
    assert [notes.plans for notes in leapt_notes] == [notes.plans for notes in stepped_notes]
    for ours, theirs in zip(leapt_counters, counters, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)  # a rate that forgets is a power there, a product here


def test_most_steps_of_a_quiet_trace_are_leapt():
    trace = poisson_trace(40, 5.0, outputs=(40, 80))
    _, notes, counters = run(trace, Setup(hardware=hardware(), policies=build_policies), may_leap=True)
    assert notes[0].n_leapt > 0.8 * counters[0]["steps_total"]


class Unsteady:
    """A batch policy that promises nothing."""

    def __init__(self) -> None:
        self.n_asked = 0

    def batch(self, view):
        self.n_asked += 1
        return DecodeFirst().batch(view)


class Curious(FirstComeFirstServed, Observer):
    """Wants to hear of every step."""

    heard: ClassVar[list[int]] = []

    def on_step(self, plan, view):
        self.heard.append(plan.id)


def test_a_policy_that_does_not_promise_a_steady_answer_is_asked_before_every_step():
    policy = Unsteady()
    setup = Setup(hardware=hardware(), policies=lambda: replace(build_policies(), batch=policy))
    _, notes, _ = run(poisson_trace(10, 5.0, outputs=(40, 80)), setup, may_leap=True)
    assert policy.n_asked >= len(notes[0].plans)


def test_a_policy_that_watches_steps_hears_of_every_one():
    setup = Setup(hardware=hardware(), policies=lambda: replace(build_policies(), order=Curious()))
    _, notes, _ = run(poisson_trace(10, 5.0, outputs=(40, 80)), setup, may_leap=True)
    assert Curious.heard == [plan.id for plan in notes[0].plans]
