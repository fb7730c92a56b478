"""Sequences that are swapped, against the executor that notices every mistake (see oracle.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from penstock.core.clock import VirtualClock
from penstock.core.errors import PolicyViolation
from penstock.core.executor import StepResult
from penstock.core.plan import Chunk, Plan, Toward
from penstock.core.sequence import FinishReason, SeqState
from penstock.core.view import Preemption, Yield
from penstock.engine.costs import GUESS_BYTES, OnlineCosts
from penstock.engine.loop import build_engine
from penstock.policy.presets import build_policies
from tests.engine.oracle import OracleExecutor, continuation, facts
from tests.engine.test_books import Gate
from tests.engine.test_scheduler import Outcome, request


@dataclass
class SwapWhenTold:
    """Swaps the sequence of a request when told to; recomputes when memory is short."""

    name: str | None = None

    def choose(self, view):
        chosen = [seq for seq in view.running if seq.request.id == self.name and seq.state is SeqState.RUNNING]
        self.name = None
        return tuple(Preemption(seq.row, Yield.SWAP) for seq in chosen)

    def victim(self, view, candidates):
        return Preemption(candidates[-1].row)


class Bench:
    def __init__(self, n_blocks=64, n_host_blocks=64, look_ahead=1, executor=None, **changes):
        self.executor = executor or OracleExecutor()
        self.executor.allocate((n_blocks,))
        self.preempt, self.gate = SwapWhenTold(), Gate()
        changes = {"preempt": self.preempt, "admit": self.gate} | changes
        policies = replace(build_policies(options={"batch": {"budget_tokens": 16}}), **changes)
        self.engine = build_engine(
            self.executor, (n_blocks,), policies, n_host_blocks=(n_host_blocks,), clock=VirtualClock(),
            look_ahead=look_ahead,
        )  # fmt: skip
        self.outcome = Outcome()

    def step(self, n=1):
        for _ in range(n):
            for update in self.engine.step():
                self.outcome.note(update)
            self.engine.scheduler.audit()

    def swap(self, name):
        """It is swapped by the next plan, and nobody is admitted until the gate opens."""
        self.gate.is_open, self.preempt.name = False, name
        self.step()

    def the(self, name):
        (seq,) = self.engine.scheduler.ledger.samples(name)
        return seq

    @property
    def computed_tokens(self):
        return sum(chunk.tokens for plan in self.executor.plans for chunk in plan.chunks)


@pytest.mark.parametrize("look_ahead", [0, 1, 2])
@pytest.mark.parametrize("swap_after", range(1, 9))
def test_what_is_in_flight_arrives_and_nothing_is_computed_again(swap_after, look_ahead):
    bench = Bench(look_ahead=look_ahead)
    bench.engine.add(request("a", range(40), max_tokens=12))
    bench.engine.add(request("b", [7] * 5, max_tokens=40))
    bench.step(swap_after)
    bench.swap("a")
    assert bench.the("a").state is SeqState.SWAPPED
    known = bench.the("a").total_tokens
    bench.step(4)
    seq = bench.the("a")
    assert seq.state is SeqState.SWAPPED
    assert seq.total_tokens >= max(known, seq.planned_tokens + 1), "the token that it goes on from is there"
    bench.gate.is_open = True
    bench.outcome.run(bench.engine)
    assert bench.outcome.tokens["a", 0] == continuation(range(40), 12)
    assert bench.outcome.tokens["b", 0] == continuation([7] * 5, 40)
    assert bench.computed_tokens <= 45 + 1, "one token more: where it goes on, it goes on as a prompt does"


def test_a_last_token_in_flight_ends_a_swapped_sequence():
    bench = Bench(look_ahead=2)
    bench.engine.add(request("a", [1] * 5, max_tokens=3))
    bench.step(3)
    bench.swap("a")
    assert bench.the("a").state is SeqState.SWAPPED
    bench.step(3)
    assert bench.outcome.tokens["a", 0] == continuation([1] * 5, 3)
    assert bench.outcome.reasons["a", 0] is FinishReason.LENGTH


def test_a_swapped_request_that_is_aborted_leaves_nothing_behind():
    bench = Bench()
    bench.engine.add(request("a", range(30), max_tokens=50))
    bench.step(5)
    bench.swap("a")
    memory = bench.engine.scheduler.memory
    assert memory.host.groups[0].pool.available < 64
    bench.engine.abort("a")
    bench.engine.scheduler.audit()
    assert memory.host.groups[0].pool.available == memory.pools[0].available_blocks == 64
    assert bench.engine.scheduler.n_waiting == 0


def test_one_who_is_aborted_while_he_comes_back_leaves_nothing_behind():
    bench = Bench()
    bench.engine.add(request("a", range(30), max_tokens=50))
    bench.engine.add(request("b", [7] * 5, max_tokens=60))
    bench.step(5)
    bench.swap("a")
    bench.step(2)
    forget(bench)
    bench.gate.is_open = True
    bench.step()
    assert any(move.toward is Toward.DEVICE for move in bench.executor.plans[-1].moves)
    bench.engine.abort("a")
    bench.outcome.run(bench.engine)
    memory = bench.engine.scheduler.memory
    assert memory.host.groups[0].pool.available == memory.pools[0].available_blocks == 64


def forget(bench):
    """The device loses what nobody uses, so that all of it has to come back."""
    pool = bench.engine.scheduler.memory.groups[0].pool
    for block in pool.try_take(pool.available):
        pool.give_back(block, keep=False, now_s=0.0)


def test_others_go_on_while_one_comes_back():
    bench = Bench()
    bench.engine.add(request("a", range(30), max_tokens=20))
    bench.engine.add(request("b", [7] * 5, max_tokens=60))
    bench.step(6)
    bench.swap("a")
    bench.step(3)
    forget(bench)
    bench.gate.is_open = True
    bench.step()
    coming = bench.executor.plans[-1]
    assert len([move for move in coming.moves if move.toward is Toward.DEVICE]) >= 8
    assert coming.decode.rows == (1,)
    assert not coming.chunks, "its bytes are on their way"
    bench.outcome.run(bench.engine)
    assert bench.outcome.tokens["a", 0] == continuation(range(30), 20)


def test_with_nobody_else_to_run_one_who_comes_back_runs_at_once():
    bench = Bench()
    bench.engine.add(request("a", range(30), max_tokens=20))
    bench.step(6)
    bench.swap("a")
    bench.step(3)
    forget(bench)
    bench.gate.is_open = True
    bench.step()
    assert bench.executor.plans[-1].moves
    assert bench.executor.plans[-1].chunks


def test_who_has_no_room_yet_waits_and_takes_his_turn():
    bench = Bench(n_blocks=12, admit=build_policies().admit)
    bench.engine.add(request("a", range(20), max_tokens=8))
    bench.step(4)
    bench.preempt.name = "a"
    bench.engine.add(request("b", [7] * 30, max_tokens=10))
    bench.step(3)
    bench.outcome.run(bench.engine)
    assert bench.outcome.tokens["a", 0] == continuation(range(20), 8)
    assert bench.outcome.tokens["b", 0] == continuation([7] * 30, 10)
    assert bench.engine.counters()["swaps_in_total"] == 1


@dataclass(frozen=True)
class OneLayer:
    """Prompts go through one layer a step."""

    def batch(self, view):
        chunks = [
            Chunk(
                row=seq.row, start=seq.planned_tokens, stop=seq.total_tokens, first_layer=seq.layers_done,
                stop_layer=seq.layers_done + 1,
            )
            for seq in view.prefilling
        ]  # fmt: skip
        return Plan(decode=view.decoding, chunks=tuple(chunks))


def test_to_swap_whom_one_cannot_is_an_error_with_the_name_of_the_policy():
    bench = Bench(batch=OneLayer())
    bench.engine.add(request("a", [1] * 9))
    bench.step()
    with pytest.raises(PolicyViolation, match="SwapWhenTold: row 0 cannot be swapped"):
        bench.swap("a")


def test_without_a_host_tier_nobody_can_be_swapped():
    bench = Bench(n_host_blocks=0)
    bench.engine.add(request("a", [1] * 9))
    bench.step()
    with pytest.raises(PolicyViolation, match="cannot be swapped"):
        bench.swap("a")
    assert not [name for name in bench.engine.counters() if name.startswith("host_kv")]


@pytest.mark.parametrize(("token_s", "how"), [(1.0, "swaps"), (1e-9, "recomputes")])
def test_the_default_yields_in_the_way_that_costs_less(token_s, how):
    """The executor says what steps take; copying takes 1 ms a block."""

    class Timed(OracleExecutor):
        def collect(self, ticket):
            plan, result = self.queue[0], super().collect(ticket)
            tokens = sum(chunk.tokens for chunk in plan.chunks)
            return StepResult(tokens=result.tokens, device_s=tokens * token_s, moved=result.moved)

    usual = build_policies()
    bench = Bench(n_blocks=12, executor=Timed(), preempt=usual.preempt, admit=usual.admit)
    for k in range(4):
        bench.engine.add(request(f"r{k}", [k] * 8, max_tokens=24))
    bench.outcome.run(bench.engine)
    for k in range(4):
        assert bench.outcome.tokens[f"r{k}", 0] == continuation([k] * 8, 24)
    counters = bench.engine.counters()
    assert counters["preemptions_total"] > 0
    assert counters["swaps_out_total"] == (counters["preemptions_total"] if how == "swaps" else 0)


def test_samples_fork_from_one_who_was_swapped_meanwhile():
    bench = Bench()
    prompt = list(range(21))
    bench.engine.add(request("a", prompt, n=1, max_tokens=12))
    bench.engine.add(request("b", prompt, n=3, max_tokens=12))
    bench.step(3)
    first = bench.engine.scheduler.ledger.samples("b")[0]
    assert first.state is SeqState.RUNNING
    bench.gate.is_open = False
    bench.preempt.name = "b"
    bench.step()
    bench.gate.is_open = True
    bench.outcome.run(bench.engine)
    assert bench.outcome.tokens["b", 0] == continuation(prompt, 12)
    assert bench.gate.admitted.count("b") >= 3


# --- costs ------------------------------------------------------------------------------------------------------------


def test_costs_are_a_guess_until_something_was_seen():
    costs = OnlineCosts(replace(facts(), weight_bytes=10**9))
    assert costs.prefill_s(1000) == pytest.approx(1.0)
    assert costs.move_s(8 * 10**9) == pytest.approx(1.0)


def test_costs_follow_what_steps_take():
    costs = OnlineCosts(replace(facts(), weight_bytes=10**9))
    plan = Plan(chunks=(Chunk(row=0, start=0, stop=100),))
    for _ in range(300):
        costs.note_step(plan, StepResult(tokens=[], device_s=0.5))  # type: ignore[arg-type]
        costs.note_move(GUESS_BYTES, 1.0)
    assert costs.prefill_s(100) == pytest.approx(0.5, rel=0.1)
    assert costs.move_s(GUESS_BYTES) == pytest.approx(1.0, rel=0.1)


def test_one_slow_copy_does_not_end_copying():
    costs = OnlineCosts(facts())
    costs.note_move(2**16, 0.1)  # 0.6 MB/s
    assert costs.move_s(2**20) < 5e-3
    before_s = costs.move_s(2**20)
    for _ in range(5000):
        costs.note_step(Plan(chunks=(Chunk(row=0, start=0, stop=1),)), StepResult(tokens=[], device_s=0.0))  # type: ignore[arg-type]
    assert costs.move_s(2**20) < 0.5 * before_s
