"""Whatever admission, preemption and clients do for a while, nothing is lost and nothing stays stuck afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.core.clock import VirtualClock
from penstock.core.sequence import SeqState, SequenceView
from penstock.core.view import Admission, AdmitPolicy, Preemption, PreemptPolicy, View, Yield
from penstock.engine.loop import Engine, build_engine
from penstock.engine.scheduler import SEED_STRIDE
from penstock.policy.presets import TABLES, build_policies
from tests.engine.oracle import OracleExecutor, continuation, facts
from tests.engine.test_scheduler import Outcome, request


class Always:
    """Starts whoever asks; memory is then found by preemption."""

    def admit(self, seq: SequenceView, view: View) -> Admission:
        return Admission.START


@dataclass
class Moody:
    """Admission and preemption that answer as they like, until they are calm; then as `calmly` and `yields` say."""

    draw: random.Random
    calmly: AdmitPolicy
    yields: PreemptPolicy
    is_calm: bool = False

    def admit(self, seq: SequenceView, view: View) -> Admission:
        if self.is_calm:
            return self.calmly.admit(seq, view)
        return self.draw.choice(list(Admission))

    def choose(self, view: View) -> Sequence[Preemption]:
        running = [seq.row for seq in view.running if seq.state is SeqState.RUNNING and seq.row is not None]
        if self.is_calm or not running or self.draw.random() < 0.7:
            return ()
        rows = self.draw.sample(running, self.draw.randint(1, len(running)))
        ways = [Yield.RECOMPUTE, Yield.PAUSE]
        first = next(seq for seq in view.running if seq.row == rows[0])
        if view.memory.swap_bytes(first) is not None and self.draw.random() < 0.5:  # for the next there may be no room
            return Preemption(rows[0], Yield.SWAP), *(Preemption(row, self.draw.choice(ways)) for row in rows[1:])
        return tuple(Preemption(row, self.draw.choice(ways)) for row in rows)

    def victim(self, view: View, candidates: Sequence[SequenceView]) -> Preemption:
        return self.yields.victim(view, candidates)


class Driver:
    """Adds, steps and aborts at random; checks every token and audits after every operation."""

    def __init__(
        self, seed: int, n_blocks: int, max_rows: int, look_ahead: int, order: str, admit: AdmitPolicy | str,
        n_host_blocks: int = 0,
    ):  # fmt: skip
        self.draw = random.Random(seed)
        slots = {"order": order} | ({"admit": admit} if isinstance(admit, str) else {})
        options = {"batch": {"budget_tokens": 16}, "admit": {"follow_beyond_tokens": 0}}
        policies = build_policies(slots=slots, options=options)
        calmly = policies.admit if isinstance(admit, str) else admit
        self.moody = Moody(random.Random(seed + 1), calmly, policies.preempt)
        self.clock = VirtualClock()
        self.executor = OracleExecutor(facts=facts(max_model_tokens=64), max_rows=max_rows)
        self.executor.allocate((n_blocks,))
        self.n_blocks = n_blocks
        self.engine: Engine = build_engine(
            self.executor, (n_blocks,), replace(policies, admit=self.moody, preempt=self.moody), clock=self.clock,
            look_ahead=look_ahead, n_host_blocks=(n_host_blocks,),
        )  # fmt: skip
        self.outcome = Outcome()
        self.wanted: dict[tuple[str, int], list[int]] = {}
        self.n_added = self.n_checked = 0
        self.open: set[str] = set()

    def act(self, most_open: int) -> None:
        what = self.draw.random()
        if what < 0.25 and len(self.open) < most_open:
            self.add()
        elif what < 0.28 and self.open:
            self.engine.abort(self.draw.choice(sorted(self.open)))
            self.take()
        else:
            self.step()
        self.engine.scheduler.audit()

    def add(self) -> None:
        """Prompts of few families, so that prefixes are shared; now and then several samples."""
        prompt = [self.draw.randrange(3)] * self.draw.randint(1, 24)
        made = request(
            f"r{self.n_added}", prompt, self.draw.randint(1, 14), self.draw.choice([1, 1, 1, 3]),
            arrival_s=self.clock.now_s(), priority=self.draw.randint(0, 1),
        )  # fmt: skip
        self.n_added += 1
        self.open.add(made.id)
        self.engine.add(made)
        for k in range(made.sampling.n):
            seed = k * SEED_STRIDE % 2**63
            self.wanted[made.id, k] = continuation(prompt, made.sampling.max_tokens or 0, seed)

    def step(self) -> None:
        self.clock.advance(0.1)
        self.executor.plans.clear()  # a long run makes many
        for update in self.engine.step():
            self.outcome.note(update)
        self.take()

    def take(self) -> None:
        self.outcome.take(self.engine)
        self.open = {name for name in self.open if name in self.engine.scheduler.ledger}
        for key in [key for key in self.wanted if key in self.outcome.reasons]:
            got, wanted = self.outcome.tokens.pop(key), self.wanted.pop(key)
            assert got == wanted[: len(got)]
            assert self.outcome.reasons[key].value == "abort" or got == wanted
            self.n_checked += 1

    def drain(self, steps: int) -> None:
        """From now on everybody is calm: all that was accepted comes to its end."""
        self.moody.is_calm = True
        for _ in range(steps):
            if not self.engine.has_work:
                break
            self.step()
            self.engine.scheduler.audit()
        assert not self.engine.has_work, f"stuck with {sorted(self.open)}"
        ledger = self.engine.scheduler.ledger
        assert ledger.accepted == sum(ledger.ended.values()) == self.n_added
        memory = self.engine.scheduler.memory
        assert memory.pools[0].available_blocks == self.n_blocks
        assert memory.host is None or memory.host.groups[0].pool.available == memory.host.groups[0].pool.n_blocks


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    turns=st.integers(1, 120),
    n_blocks=st.integers(14, 40),
    max_rows=st.integers(1, 6),
    look_ahead=st.integers(0, 2),
    order=st.sampled_from(sorted(TABLES["order"])),
    admit=st.sampled_from([Always(), *sorted(TABLES["admit"])]),
    n_host_blocks=st.sampled_from([0, 5, 30]),
)
@example(
    seed=81, turns=150, n_blocks=24, max_rows=5, look_ahead=2, order="priority", admit="worst-case", n_host_blocks=0
)
@example(seed=1775, turns=150, n_blocks=15, max_rows=4, look_ahead=1, order="edf", admit="watermark", n_host_blocks=0)
def test_admission_that_was_skipped_at_random_never_wedges(
    seed, turns, n_blocks, max_rows, look_ahead, order, admit, n_host_blocks
):
    driver = Driver(seed, n_blocks, max_rows, look_ahead, order, admit, n_host_blocks)
    for _ in range(turns):
        driver.act(most_open=12)
    driver.drain(steps=3000)


@dataclass
class ParentOnly:
    """Later samples are first in the queue, but until it is calm only first ones start; then the parent is paused."""

    is_calm: bool = False
    has_paused: bool = False
    is_static: bool = True

    def key(self, seq: SequenceView, view: View) -> tuple[float, ...]:
        return (-float(seq.id[-1]),)

    def admit(self, seq: SequenceView, view: View) -> Admission:
        return Admission.START if self.is_calm or seq.id.endswith(".0") else Admission.SKIP

    def choose(self, view: View) -> Sequence[Preemption]:
        if not self.is_calm or self.has_paused:
            return ()
        self.has_paused = True
        return tuple(Preemption(seq.row, Yield.PAUSE) for seq in view.running if seq.row is not None)

    def victim(self, view: View, candidates: Sequence[SequenceView]) -> Preemption:
        assert candidates[-1].row is not None
        return Preemption(candidates[-1].row)


def test_a_fork_that_finds_no_memory_does_not_keep_its_paused_parent_from_going_on():
    """The parent holds the whole pool and is paused; its sample, the first in the queue, needs a block."""
    policy = ParentOnly()
    policies = replace(build_policies(), order=policy, admit=policy, preempt=policy)
    executor = OracleExecutor(max_rows=4)
    executor.allocate((8,))
    engine, outcome = build_engine(executor, (8,), policies, clock=VirtualClock()), Outcome()
    engine.add(request("a", [1] * 6, max_tokens=26, n=2))
    while engine.scheduler.memory.pools[0].available_blocks:
        for update in engine.step():
            outcome.note(update)
    policy.is_calm = True
    outcome.run(engine, steps=200)
    assert policy.has_paused
    assert outcome.tokens["a", 0] == continuation([1] * 6, 26)


def run_and_audit(steps: int) -> Driver:
    driver = Driver(seed=1, n_blocks=30, max_rows=6, look_ahead=1, order="fcfs", admit=Always(), n_host_blocks=30)
    for _ in range(steps):
        driver.act(most_open=16)
    driver.drain(steps=5000)
    return driver


def test_kv_audit_after_every_operation_of_a_long_random_run():
    driver = run_and_audit(10_000)
    assert driver.n_checked > 300
    counters = driver.engine.counters()
    assert counters["preemptions_total"] > 100
    assert counters["prefix_hit_tokens_total"] > 1000
    assert counters["requests_ended_abort_total"] > 50
    assert counters["swaps_out_total"] > 100
    assert counters["host_hit_tokens_total"] > 100


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kv_audit_after_every_operation_of_a_very_long_random_run():
    assert run_and_audit(1_000_000).n_checked > 30_000
