"""The simulator decides what the engine decides: same plans, step by step; and a changed policy is noticed."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.core.plan import Plan
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.policy.presets import build_policies
from penstock.sim.executor import JumpingClock, SleepingClock
from penstock.sim.instance import simulated_engine
from tests.sim.parts import Linear, hardware

SOURCE = Path(__file__).parents[2] / "src" / "penstock"
N_REQUESTS = 1000


@dataclass(frozen=True)
class Event:
    """Before step `step`: a request comes, or one that came is cancelled."""

    step: int
    index: int
    prompt: tuple[int, ...] = ()
    max_tokens: int = 0


def script() -> list[Event]:
    """Prompts share beginnings, some requests are cancelled, and memory is too small for all that run."""
    rng = random.Random(5)
    stems = [tuple(rng.randrange(3, 256) for _ in range(60)) for _ in range(4)]
    events, step = [], 0
    for index in range(N_REQUESTS):
        step += rng.choice([0, 0, 1, 2, 3])
        stem = rng.choice(stems)[: rng.randint(1, 60)]
        tail = tuple(rng.randrange(3, 256) for _ in range(rng.randint(1, 12)))
        events.append(Event(step, index, stem + tail, rng.randint(1, 24)))
        if rng.random() < 0.1:
            events.append(Event(step + rng.randint(1, 12), index))
    return sorted(events, key=lambda event: event.step)


def decisions(clock, cost, change=lambda policies: policies) -> tuple[list[Plan], dict[str, float]]:
    """Every plan that the engine makes of the script."""
    engine = simulated_engine(
        hardware(cost, n_blocks=50, max_rows=8), change(build_policies()), clock, lambda seed: 1 + seed % 17
    )
    plans: list[Plan] = []
    submit = engine._executor.submit

    def noting(plan: Plan):
        plans.append(plan)
        return submit(plan)

    engine._executor.submit = noting  # type: ignore[method-assign]
    events, step = script(), 0
    while events or engine.has_work:
        while events and (events[0].step <= step or not engine.has_work):
            event = events.pop(0)
            if event.prompt:
                sampling = SamplingParams(max_tokens=event.max_tokens, temperature=0.0)
                prompt = array("i", event.prompt)
                name, arrival_s = str(event.index), float(event.index)
                engine.add(Request(id=name, prompt=prompt, sampling=sampling, seed=event.index, arrival_s=arrival_s))
            else:
                engine.abort(str(event.index), FinishReason.ABORT)
        engine.step()
        step += 1
    engine.scheduler.audit()
    return plans, dict(engine.counters())


def test_engine_in_real_time_and_simulator_make_the_same_plans():
    cost = Linear(step_s=2e-5, token_s=0, row_s=0)
    live, counters = decisions(SleepingClock(), cost)
    simulated, _ = decisions(JumpingClock(), Linear())  # other times, same decisions: the script goes by steps
    assert counters["requests_accepted_total"] == N_REQUESTS
    assert counters["preemptions_total"] > 20
    assert counters["requests_ended_abort_total"] > 50
    assert counters["prefix_hit_tokens_total"] > 5000
    assert len(live) > 1000
    for number, (ours, theirs) in enumerate(zip(live, simulated, strict=True)):
        assert ours == theirs, f"step {number} differs"


def test_a_policy_that_is_a_little_different_is_noticed():
    def perturbed(policies):
        return replace(policies, batch=replace(policies.batch, budget_tokens=60))

    plans = decisions(JumpingClock(), Linear())[0]
    assert decisions(JumpingClock(), Linear())[0] == plans
    assert decisions(JumpingClock(), Linear(), perturbed)[0] != plans


def test_nothing_that_decides_knows_of_the_simulator():
    """No branch, no import, no name."""
    for room in ("engine", "policy", "cache"):
        for path in (SOURCE / room).rglob("*.py"):
            assert not re.search(r"simulat|is_virtual|penstock\.sim", path.read_text()), path


def test_a_simulation_needs_no_torch():
    code = (
        "import sys; from penstock.sim.run import fleet_of; import penstock.simulate; "
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
