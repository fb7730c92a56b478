"""Small promises of the scheduler that only show when something else happens at the same time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from penstock.core.clock import VirtualClock
from penstock.core.errors import InvalidRequest, Overloaded
from penstock.core.executor import StepResult, TokenLogprobs
from penstock.core.request import Objective, Request, SamplingParams
from penstock.core.view import Admission, Preemption
from penstock.engine.limits import QueueLimits
from penstock.engine.loop import Engine, build_engine
from penstock.policy.presets import build_policies
from tests.engine.oracle import OracleExecutor, continuation
from tests.engine.test_scheduler import Outcome, make_engine, request


class WithPromptLogprobs(OracleExecutor):
    """Gives each prompt position the log-probability -position."""

    def collect(self, ticket):
        plan, lengths = self.queue[0], {}
        for i, chunk in enumerate(plan.chunks):
            start = next((start for start in plan.starts if start.row == chunk.row), None)
            if start is not None:
                self.prompts[chunk.row] = start.prompt_tokens
            lengths[i] = range(chunk.start + 1, min(chunk.stop, self.prompts[chunk.row] - 1) + 1)
        result = super().collect(ticket)
        entries = {i: tuple(TokenLogprobs(0, -float(p), 1, ()) for p in at) for i, at in lengths.items()}
        return StepResult(tokens=result.tokens, prompt_logprobs=entries)

    def __post_init__(self):
        super().__post_init__()
        self.prompts = {}


@dataclass
class PreemptOnce:
    """Preempts row 0 when told to."""

    now: bool = False

    def choose(self, view):
        if self.now and view.running:
            self.now = False
            return (Preemption(view.running[0].row),)
        return ()

    def victim(self, view, candidates):
        return Preemption(candidates[-1].row)


class Gate:
    """Admits whoever comes while it is open."""

    def __init__(self):
        self.is_open = True
        self.admitted = []

    def admit(self, seq, view):
        if not self.is_open:
            return Admission.WAIT
        self.admitted.append(seq.request.id)
        return Admission.START


@pytest.mark.parametrize("comes_back_at_once", [True, False])
@pytest.mark.parametrize("preempt_at", [None, 1, 2, 3, 4])
def test_prompt_logprobs_come_once_and_whole_however_the_prompt_was_computed(preempt_at, comes_back_at_once):
    preempt, gate = PreemptOnce(), Gate()
    policies = replace(build_policies(options={"batch": {"budget_tokens": 4}}), preempt=preempt, admit=gate)
    executor = WithPromptLogprobs()
    executor.allocate((64,))
    engine = build_engine(executor, (64,), policies, clock=VirtualClock())
    sampling = SamplingParams(max_tokens=4, temperature=0.0, prompt_logprobs=1)
    engine.add(Request(id="a", prompt=[3] * 10, sampling=sampling))
    updates = []
    for step in range(40):
        preempt.now = step == preempt_at
        gate.is_open = comes_back_at_once or step != preempt_at
        updates += engine.step()
    assert [token for update in updates for token in update.tokens] == continuation([3] * 10, 4)
    assert engine.scheduler.preemptions == (preempt_at is not None)
    first, *others = updates
    assert [entry.logprob for entry in first.prompt_logprobs] == [-float(p) for p in range(1, 10)]
    assert not any(update.prompt_logprobs for update in others)


def test_the_queue_is_sorted_again_when_one_who_waits_gets_a_token():
    """Preempted with its first token in flight, it waits for ttft_s, and once the token is there for deadline_s."""
    preempt, gate = PreemptOnce(), Gate()
    policies = replace(build_policies("deadline"), preempt=preempt, admit=gate)
    engine = make_engine(policies=policies)
    engine.add(request("a", [1] * 4, objective=Objective(ttft_s=1.0, deadline_s=50.0)))
    engine.step()  # its first token is in flight
    engine.add(request("b", [2] * 4, objective=Objective(ttft_s=20.0)))
    preempt.now, gate.is_open = True, False
    order = engine.scheduler._queue.ordered
    engine.scheduler._yield_by_choice(engine.scheduler._view())
    assert [seq.request.id for seq in order(engine.scheduler._view())] == ["a", "b"]
    engine.step()  # brings the token
    gate.is_open = True
    gate.admitted.clear()
    engine.step()
    assert gate.admitted == ["b", "a"]


def test_samples_that_wait_for_their_prompt_count_as_queued_tokens():
    engine = make_engine(limits=QueueLimits(max_queued_requests=100, max_queued_tokens=1000))
    engine.add(request("a", [1] * 90, n=10))
    with pytest.raises(Overloaded, match="holds 900 of at most 1000 prompt tokens"):
        engine.add(request("b", [2] * 90, n=2))
    engine.add(request("c", [3] * 90))
    assert engine.counters()["queue_tokens"] == 990


def test_an_engine_whose_work_was_aborted_while_it_stalled_is_idle():
    gate = Gate()
    gate.is_open = False
    engine = make_engine(policies=replace(build_policies(), admit=gate))
    engine.add(request("a", [1] * 4))
    engine.step()
    assert engine.is_stalled
    engine.abort("a")
    assert not engine.has_work
    assert not engine.is_stalled


def test_a_stop_id_that_the_model_does_not_have_is_refused():
    """It would be an index beyond the logits, on a device where nobody checks."""
    engine: Engine = make_engine()
    sampling = SamplingParams(max_tokens=4, stop_token_ids=(7, 50_000))
    with pytest.raises(InvalidRequest, match=r"stop_token_ids: token id 50000 is not in 0\.\.49999") as wrong:
        engine.add(Request(id="a", prompt=[1], sampling=sampling))
    assert wrong.value.param == "stop_token_ids"


def test_what_is_told_of_an_end_adds_up():
    engine, outcome = make_engine(), Outcome()
    engine.add(request("a", [1] * 9, n=2))
    outcome.run(engine)
    counters = engine.counters()
    assert counters["requests_accepted_total"] == counters["requests_ended_length_total"] == 1
    assert (counters["requests_running"], counters["requests_waiting"], counters["kv_used_frac"]) == (0, 0, 0)
    assert counters["decode_tokens_total"] + counters["prefill_tokens_total"] >= 9 + 2 * 7
