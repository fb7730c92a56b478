"""A step log replayed: the same decisions, and what differs is found."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace

import msgspec
import pytest

from penstock.core.errors import PenstockError
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.engine.limits import QueueLimits
from penstock.engine.loop import build_engine
from penstock.engine.step_log import Header, Step, StepLog, StepLogError, read_step_log
from penstock.policy.presets import build_policies
from penstock.sim.calibrate import Log, cost_differences
from penstock.sim.executor import JumpingClock
from penstock.sim.instance import simulated_engine
from penstock.sim.replay_log import replay_closed, replay_decisions
from tests.sim.parts import DEVICE, Linear, hardware

LIMITS = QueueLimits()
TIMES = Linear(step_s=1e-3, token_s=1e-5, row_s=2e-5)


def header(hard, **changes) -> Header:
    values = {
        "facts": hard.facts, "n_blocks": hard.n_blocks, "n_host_blocks": hard.n_host_blocks, "max_rows": hard.max_rows,
        "look_ahead": 1, "prefix_caching": True, "policy": "default", "slots": {}, "policy_options": {},
        "max_queued_requests": LIMITS.max_queued_requests, "max_queued_tokens": LIMITS.max_queued_tokens,
        "device": "toy", "cost": "known",
    }  # fmt: skip
    return Header(**{**values, **changes})


def served(path, n_requests=150, *, n_host_blocks=(), most_bytes=2**28, n_blocks=50, seed=0, **changes):
    """Serve with prefix hits, preemptions, stop strings, aborts and answers that end by themselves; log it."""
    hard = replace(hardware(TIMES, n_blocks=n_blocks), n_host_blocks=n_host_blocks, known_cost=TIMES)
    clock, rng = JumpingClock(), random.Random(seed)
    log = StepLog(path, header(hard, **changes), most_bytes)

    def build(executor, blocks, policies, **options):
        return build_engine(executor, blocks, policies, step_log=log, **options)

    engine = simulated_engine(hard, build_policies(), clock, lambda seed: 1 + seed % 19, limits=LIMITS, build=build)
    stems = [tuple(rng.randrange(3, 256) for _ in range(60)) for _ in range(4)]
    for number in range(n_requests):
        for _ in range(rng.choice((0, 0, 1, 3))):
            engine.step()
        if not engine.has_work:
            clock.advance(rng.random())
        prompt = rng.choice(stems)[: rng.randint(1, 60)] + tuple(
            rng.randrange(3, 256) for _ in range(rng.randint(1, 9))
        )
        sampling = SamplingParams(max_tokens=rng.randint(1, 24), temperature=0.0, n=rng.choice((1, 1, 1, 3)))
        request = Request(id=f"r{number}", prompt=array("i", prompt), sampling=sampling, seed=number)
        engine.add(replace(request, arrival_s=clock.now_s() - rng.random() * 1e-4))
        if rng.random() < 0.15:
            engine.abort(f"r{rng.randrange(number + 1)}", FinishReason.ABORT)
        name = f"r{rng.randrange(number + 1)}"
        begun = [seq for seq in engine.scheduler.ledger.samples(name) if seq.output_tokens]
        if begun and rng.random() < 0.5:
            engine.finish(name, begun[0].index, rng.randint(0, 3))
    while engine.has_work:
        engine.step()
    counters = dict(engine.counters())
    engine.close()
    return counters


def test_the_engine_that_a_log_describes_decides_again_what_it_did(tmp_path):
    counters = served(tmp_path / "log", n_host_blocks=(80,))
    assert counters["preemptions_total"] > 5
    assert counters["swaps_out_total"] > 0
    assert counters["prefix_hit_tokens_total"] > 500
    assert counters["requests_ended_abort_total"] > 5
    assert counters["requests_ended_stop_total"] > 20
    log = Log.read(tmp_path / "log")
    assert len(log.steps) == counters["steps_total"]
    assert replay_decisions(log, DEVICE, TIMES) == (len(log.steps), None)


def test_the_first_step_that_another_policy_plans_otherwise_is_named(tmp_path):
    served(tmp_path / "log")
    log = Log.read(tmp_path / "log")
    log.header = msgspec.structs.replace(log.header, policy_options={"batch": {"budget_tokens": 20}})
    n_alike, parting = replay_decisions(log, DEVICE, TIMES)
    assert parting is not None
    assert n_alike < len(log.steps)
    assert parting.logged.plan == log.steps[n_alike].plan
    assert parting.planned is not None
    assert parting.planned.chunks != parting.logged.chunks


def test_costs_that_made_the_log_explain_it_and_others_are_measured_against_it(tmp_path):
    served(tmp_path / "log")
    log = Log.read(tmp_path / "log")
    assert max(abs(one.off_frac) for one in cost_differences(log, TIMES)) < 1e-9
    twice = Linear(step_s=2e-3, token_s=2e-5, row_s=4e-5)
    assert all(one.off_frac == pytest.approx(1.0) for one in cost_differences(log, twice))
    assert max(abs(one.off_frac) for one in cost_differences(log, None)) < 1e-9  # what the engine predicted itself


def test_on_the_virtual_clock_requests_take_what_they_took(tmp_path):
    served(tmp_path / "log", n_blocks=400)
    log = Log.read(tmp_path / "log")
    seen = replay_closed(log, DEVICE, TIMES, TIMES)
    assert len(seen) == len(log.ends)
    uncut = [one for one in seen if one.logged.output_tokens == one.predicted.output_tokens]
    assert len(uncut) > 0.8 * len(seen)
    logged_s = sum(one.logged.e2e_s for one in uncut)
    assert sum(one.predicted.e2e_s for one in uncut) == pytest.approx(logged_s, rel=0.1)


def test_no_token_is_logged_and_prompts_that_begin_alike_have_blocks_alike(tmp_path):
    served(tmp_path / "log", 40)
    events = [event for event in Log.read(tmp_path / "log").events if hasattr(event, "blocks")]
    named = [event.blocks for event in events if event.blocks]
    assert len({blocks[0] for blocks in named}) < len(named)
    served(tmp_path / "other", 40)
    others = [event for event in Log.read(tmp_path / "other").events if hasattr(event, "blocks")]
    assert not {block for event in events for block in event.blocks} & {b for event in others for b in event.blocks}


def test_a_log_is_bounded_and_its_last_file_stands_alone(tmp_path):
    path = tmp_path / "log"
    served(path, 100, most_bytes=40_000)
    assert path.stat().st_size <= 20_000
    assert (tmp_path / "log.1").stat().st_size <= 20_000
    assert sorted(one.name for one in tmp_path.iterdir()) == ["log", "log.1"]
    log = Log.read(path)
    assert cost_differences(log, TIMES)
    with pytest.raises(StepLogError, match="its beginning went to the file before it"):
        replay_decisions(log, DEVICE, TIMES)


def test_a_line_that_was_cut_off_by_a_death_is_left_out(tmp_path):
    path = tmp_path / "log"
    served(path, 20)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert len(list(read_step_log(path))) == whole.count(b"\n") - 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [*lines[:3], b"{}\n", *lines[3:]], "line 4: not a line of a step log"),
        (lambda lines: [*lines[:3], b"\xff\xfe\n"], "line 4: not a line of a step log"),
        (lambda lines: lines[1:], "line 1: is no header"),
        (lambda lines: [*lines[:2], lines[0]], "line 3: is a second header"),
        (lambda lines: lines[:1], "no step in it"),
        (lambda lines: [], "line 1: the file is empty"),
        (lambda lines: [lines[0].replace(b'"penstock_step_log":1', b'"penstock_step_log":9')], "line 1: version 9"),
        (lambda lines: [*lines, next(line for line in lines if b'"step"' in line)], "comes after step"),
    ],
)
def test_a_wrong_log_is_answered_with_file_and_line(tmp_path, damage, words):
    path = tmp_path / "log"
    served(path, 20)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StepLogError, match=words) as found:
        Log.read(path)
    assert str(path) in str(found.value)


def test_a_log_that_cannot_be_written_or_read_is_told(tmp_path):
    with pytest.raises(PenstockError, match="cannot write the step log"):
        StepLog(tmp_path / "no" / "where", header(hardware()))
    with pytest.raises(StepLogError, match="cannot read the step log"):
        Log.read(tmp_path / "missing")


def test_lines_that_were_lost_are_counted_and_end_what_can_be_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.engine.step_log.MOST_WAITING", 0)
    served(tmp_path / "log", 5)
    monkeypatch.undo()
    records = [record for _, record in read_step_log(tmp_path / "log")]
    assert not any(isinstance(record, Step) for record in records)
