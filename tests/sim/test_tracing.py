"""A timeline of an engine: nothing changes for being watched, every plan is there once, and gaps say their cause."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from penstock.core.errors import ConfigError, PolicyViolation
from penstock.core.request import Request, SamplingParams
from penstock.core.view import Admission, Observer
from penstock.engine.loop import build_engine
from penstock.engine.timeline import Slice, Timeline, TracedStep, summarise
from penstock.engine.tracing import Tracer, build_traced_engine, metered
from penstock.launch import make_engine
from penstock.options import EngineOptions
from penstock.policy.presets import build_policies
from penstock.sim.executor import JumpingClock
from penstock.sim.instance import simulated_engine

from .parts import DEVICE, TOKEN_BYTES, Linear
from .parts import hardware as plain_hardware


def hardware(cost=None, n_blocks=400, n_host_blocks=0):
    host_blocks = (n_host_blocks,) if n_host_blocks else ()
    return replace(plain_hardware(cost, n_blocks), n_host_blocks=host_blocks)


def request(name, prompt_tokens=20, outputs=10, arrival_s=0.0):
    prompt = array("i", ((len(name) * ord(name[-1]) + i * i) % 290 + 5 for i in range(prompt_tokens)))
    sampling = SamplingParams(max_tokens=outputs, ignore_eos=True)
    return Request(id=name, prompt=prompt, sampling=sampling, arrival_s=arrival_s, seed=len(name))


def run(requests, clock, engine, pause_s=0.0):
    """Serve them at their times; `pause_s`: how long the caller keeps the loop waiting behind each step."""
    updates, left = [], sorted(requests, key=lambda one: one.arrival_s)
    while left or engine.has_work:
        if not engine.has_work and left[0].arrival_s > clock.now_s():
            clock.wait_until(left[0].arrival_s)
        while left and left[0].arrival_s <= clock.now_s():
            engine.add(left.pop(0))
        updates += [(clock.now_s(), update.request_id, tuple(update.tokens)) for update in engine.step()]
        clock.wait_until(clock.now_s() + pause_s)
    return updates


def traced(tmp_path, requests, cost=None, pause_s=0.0, most_steps=10**6, policies=None, **pools):
    """(what was told, the timeline, the events of the file)."""
    clock, path = JumpingClock(), tmp_path / "trace.json"
    tracer = Tracer(path, clock.now_s, most_steps)
    engine = simulated_engine(
        hardware(cost, **pools), policies or build_policies(), clock, lambda seed: 10**6,
        build=partial(build_traced_engine, tracer),
    )  # fmt: skip
    updates = run(requests, clock, engine, pause_s)
    engine.close()
    return updates, tracer.timeline, json.loads(path.read_text())


def crowd(n=30, rate_per_s=300.0):
    return [request(f"r{i}", 5 + 7 * i % 40, 1 + 11 * i % 30, i / rate_per_s) for i in range(n)]


def ns(microseconds):
    return round(1000 * microseconds)


PRESSED = {"n_blocks": 30, "n_host_blocks": 60}  # too small for all: sequences are swapped


def test_an_engine_does_the_same_when_it_is_watched(tmp_path):
    clock = JumpingClock()
    engine = simulated_engine(hardware(**PRESSED), build_policies(), clock, lambda seed: 10**6)
    assert traced(tmp_path, crowd(), **PRESSED)[0] == run(crowd(), clock, engine)


@pytest.mark.parametrize("pools", [{}, PRESSED])
@pytest.mark.parametrize("cost", [Linear(), Linear(host=3e-3)])
def test_the_file_holds_every_plan_once_in_slices_that_do_not_cross(tmp_path, cost, pools):
    _, timeline, trace = traced(tmp_path, crowd(), cost, **pools)
    events = trace["traceEvents"]
    tracks = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(
                (ns(event["ts"]), ns(event["ts"]) + ns(event["dur"]))
            )
            assert event["dur"] >= 0
    host, steps = tracks[1, 1], tracks[2, 2]
    for slices in tracks.values():
        assert slices == sorted(slices, key=lambda one: one[0])
    for track in tracks.keys() - {(1, 1)}:
        assert all(a[1] <= b[0] for a, b in pairwise(tracks[track])), track
    open_slices = []
    for start, stop in host:
        while open_slices and open_slices[-1] <= start:
            open_slices.pop()
        assert not open_slices or stop <= open_slices[-1]
        open_slices.append(stop)
    plans = [event["args"]["plan"] for event in events if event.get("tid") == 2 and event["ph"] == "X"]
    assert plans == list(range(len(timeline.steps)))
    wall = max(stop for _, stop in host) - min(start for start, _ in host)
    assert sum(stop - start for start, stop in steps) <= wall
    arrows = [(event["ph"], event["id"]) for event in events if event["ph"] in "sf"]
    assert sorted(arrows) == sorted((phase, plan) for plan in plans for phase in "sf")
    summary = trace["otherData"]
    assert summary["steps"] == len(plans)
    assert summary["busy_frac"] + sum(summary["gaps_s"].values()) / summary["wall_s"] == pytest.approx(1, abs=0.01)


def test_a_step_carries_what_it_did(tmp_path):
    _, timeline, _ = traced(tmp_path, [request("a", 20, 9), request("b", 8, 3, arrival_s=1.5e-3)])
    kinds = [(step.kind, step.decode_rows, step.chunk_tokens) for step in timeline.steps]
    assert kinds[0] == ("prefill", 0, 20)
    assert ("mixed", 1, 8) in kinds
    assert kinds[-1][0] == "decode"


def test_copies_between_the_tiers_stand_on_a_track_of_their_own(tmp_path):
    _, timeline, _ = traced(tmp_path, crowd(), **PRESSED)
    moving = [step for step in timeline.steps if step.blocks_out or step.blocks_in]
    assert len(timeline.copies) == len(moving) > 0
    for step, copy in zip(moving, timeline.copies, strict=True):
        assert copy.name == f"{step.blocks_out} blocks out, {step.blocks_in} in"
        blocks_s = (step.blocks_out + step.blocks_in) * 4 * TOKEN_BYTES / DEVICE.host_bytes_per_s
        assert copy.seconds == pytest.approx(blocks_s)
        assert copy.start_s >= step.submit_s


def test_a_step_that_was_there_in_time_waited_for_the_copy_under_way():
    def step(plan_id, submit_s, start_s, stop_s):
        return TracedStep(
            plan_id=plan_id, submit_s=submit_s, submitted_s=submit_s, decode_rows=1, chunks=0, chunk_tokens=0,
            blocks_out=0, blocks_in=0, start_s=start_s, stop_s=stop_s,
        )  # fmt: skip

    timeline = Timeline(
        steps=[step(0, 0, 0, 1), step(1, 0.5, 2, 3), step(2, 2.5, 3.5, 4)], copies=[Slice("1 blocks in", 0.9, 1.9)]
    )
    assert [gap.name for gap in timeline.gaps()] == ["waiting for a copy", "start of the next step"]


@pytest.mark.parametrize(
    ("cost", "pause_s", "cause"),
    [
        (Linear(host=5e-3), 0.0, "host late: submit"),
        (Linear(), 5e-3, "host late: outside"),
    ],
)
def test_a_gap_is_laid_to_what_the_host_did_meanwhile(tmp_path, cost, pause_s, cause):
    _, timeline, _ = traced(tmp_path, [request("a", outputs=20)], cost, pause_s)
    summary = summarise(timeline)
    assert max(summary.gaps_s, key=summary.gaps_s.get) == cause
    assert summary.busy_frac < 0.5
    assert summary.biggest_gaps[0].name == cause


def test_a_pause_between_requests_is_nobodys_fault(tmp_path):
    _, timeline, _ = traced(tmp_path, [request("a"), request("b", arrival_s=3.0)])
    summary = summarise(timeline)
    assert set(summary.gaps_s) == {"nothing to do"}
    assert summary.gaps_s["nothing to do"] == pytest.approx(3.0, rel=0.05)


def test_a_device_that_always_has_its_next_step_never_rests(tmp_path):
    _, timeline, _ = traced(tmp_path, [request("a", outputs=50)])
    assert summarise(timeline).busy_frac == pytest.approx(1.0)


class Reluctant(Observer):
    """Starts nobody before a time; counts what it observes."""

    def __init__(self):
        self.steps = 0

    def admit(self, seq, view):
        return Admission.START if view.now_s >= 0.5 else Admission.WAIT

    def on_step(self, plan, view):
        self.steps += 1


def test_a_policy_that_waits_is_named(tmp_path):
    reluctant = Reluctant()
    policies = replace(build_policies(), admit=reluctant)
    _, timeline, _ = traced(tmp_path, [request("a")], pause_s=0.01, policies=policies)
    assert "policies wait" in {host.phase.value for host in timeline.phases}
    assert reluctant.steps == len(timeline.steps)  # an observer is one behind its meter, too


def test_policies_lie_within_the_plan_under_their_own_names(tmp_path):
    _, timeline, _ = traced(tmp_path, crowd())
    assert {policy.name for policy in timeline.policies} >= {"Watermark.admit", "DecodeFirst.batch", "Cheapest.choose"}


def test_a_wrong_policy_is_named_in_the_error_as_ever(tmp_path):
    policies = metered(build_policies(), Tracer(tmp_path / "trace.json"))
    with pytest.raises(PolicyViolation, match="policy DecodeFirst: wrong"):
        raise PolicyViolation(policies.batch, "wrong")


def test_a_trace_that_grows_too_long_is_cut_and_says_so(tmp_path, caplog):
    _, timeline, trace = traced(tmp_path, crowd(), most_steps=5)
    assert len(timeline.steps) == 5
    assert trace["otherData"]["is_cut"] is True
    assert "the trace has 5 steps" in caplog.text


def test_the_simulated_engine_of_the_server_writes_one_when_it_closes(tmp_path):
    path = tmp_path / "trace.json"
    options = EngineOptions(model="llama-8b", executor="simulated", trace=str(path))
    engine = make_engine(options)
    engine.add(request("a", outputs=3), age_s=0.0)
    while engine.has_work:
        engine.step()
    engine.close()
    summary = json.loads(path.read_text())["otherData"]
    assert summary["steps"] == engine.counters()["steps_total"]
    assert 0 < summary["busy_frac"] <= 1


def test_a_trace_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    options = EngineOptions(model="llama-8b", executor="simulated", trace=str(tmp_path / "no" / "trace.json"))
    with pytest.raises(ConfigError, match="cannot write the trace"):
        make_engine(options)


def test_untraced_engines_are_built_of_the_plain_parts():
    engine = simulated_engine(hardware(), build_policies(), JumpingClock(), lambda seed: 5, build=build_engine)
    assert type(engine).__name__ == "Engine"
    assert type(engine._executor).__name__ == "SimExecutor"
