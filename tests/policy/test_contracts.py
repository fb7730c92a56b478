"""Every row of the policy tables keeps the contract of its slot; and the contracts notice who does not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.errors import PolicyViolation
from penstock.core.plan import NO_DECODE, Chunk, DecodeGroup, Plan
from penstock.core.sequence import FinishReason, SeqState
from penstock.core.view import Admission, Observer, Preemption, Steady, Yield, next_chunk
from penstock.policy.contracts import (
    check_admit,
    check_batch,
    check_order,
    check_predict,
    check_preempt,
    check_retain,
)
from penstock.policy.presets import TABLES, build_policies, option_fields
from tests.policy.views import Blocks, make_seq, make_view, views

some_views = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def policy_of(slot, name, **options):
    return getattr(build_policies(slots={slot: name}, options={slot: options}), slot)


def rows_of(slot):
    return pytest.mark.parametrize("name", sorted(TABLES[slot]))


@rows_of("order")
@some_views
@given(view=views())
def test_order(name, view):
    check_order(policy_of("order", name), view)


@rows_of("admit")
@some_views
@given(view=views())
def test_admit(name, view):
    check_admit(policy_of("admit", name), view)


@rows_of("admit")
@some_views
@given(view=views().filter(lambda view: any(seq.state is SeqState.PAUSED for seq in view.running)))
def test_where_only_paused_sequences_are_left_one_goes_on(name, view):
    paused = tuple(seq for seq in view.running if seq.state is SeqState.PAUSED)
    check_admit(
        policy_of("admit", name), msgspec.structs.replace(view, prefilling=(), decoding=NO_DECODE, running=paused)
    )


@rows_of("batch")
@some_views
@given(view=views(), budget_tokens=st.integers(1, 4096))
def test_batch(name, view, budget_tokens):
    if "budget_tokens" in option_fields(TABLES["batch"][name]):
        check_batch(policy_of("batch", name, budget_tokens=budget_tokens), view, budget_tokens)
    else:
        check_batch(policy_of("batch", name), view)


@rows_of("batch")
@some_views
@given(view=views())
def test_where_somebody_could_run_somebody_does(name, view):
    choice = policy_of("batch", name).batch(view)
    assert choice.is_empty == (not view.prefilling and not view.decoding.rows)


@rows_of("preempt")
@some_views
@given(view=views())
def test_preempt(name, view):
    check_preempt(policy_of("preempt", name), view)


@rows_of("preempt")
@some_views
@given(view=views())
def test_while_another_runs_the_one_that_was_served_first_does_not_yield(name, view):
    """So somebody always makes progress; `first` is by priority, then arrival."""
    if len(view.running) > 1:
        first = min(view.running, key=lambda seq: (seq.request.priority, seq.arrival_s, seq.id))
        assert policy_of("preempt", name).victim(view, view.running).row != first.row


@rows_of("retain")
@some_views
@given(view=views(max_each=2), toggled=st.lists(st.integers(0, 7), max_size=40))
def test_retain(name, view, toggled):
    check_retain(build_policies(slots={"retain": name}).new_retain, view, toggled)


@rows_of("predict")
@some_views
@given(view=views(), finished=st.lists(st.integers(1, 400), max_size=60))
def test_predict(name, view, finished):
    policy = policy_of("predict", name)
    check_predict(policy, view)
    if isinstance(policy, Observer):
        for k, outputs in enumerate(finished):
            seq = make_seq(f"f{k}", outputs=outputs, limit=400, category=["", "chat"][k % 2])
            seq.finish_reason = FinishReason.STOP
            policy.on_finish(seq, view)
        check_predict(policy, view)


# --- whoever does not keep the contract is named ----------------------------------------------------------------------


@dataclass
class Wrong:
    """Every slot at once; each answer is what the test says."""

    is_static: bool = True
    keys: tuple = ()
    admission: object = Admission.START
    plan: object = None
    chosen: tuple = ()
    yields: object = None
    evicts: object = None
    expected: int = 16
    bound: int = 16
    does: object = None
    calls: int = 0

    def _called(self, *seen):
        self.calls += 1
        if self.does is not None:
            self.does(*seen)

    def key(self, seq, view):
        self._called(seq)
        return self.keys[self.calls % len(self.keys)] if self.keys else (view.now_s,)

    def admit(self, seq, view):
        return self.admission(view) if callable(self.admission) else self.admission

    def batch(self, view):
        return self.plan(view)

    def choose(self, view):
        return self.chosen

    def victim(self, *seen):
        return self.yields

    def victims(self, n):
        return self.evicts

    def expected_tokens(self, seq):
        return self.expected

    def bound_tokens(self, seq):
        return self.bound

    def pin_until_s(self, seq, now_s):
        return None

    def on_cached(self, blocks, now_s):
        pass

    def on_removed(self, blocks):
        pass


def one_of_each():
    return make_view(
        waiting=[make_seq("w", 9)],
        prefilling=[make_seq("p", 9, row=0)],
        decoding=[make_seq("d", 4, outputs=1, row=1, planned=5)],
        memory=Blocks(available_blocks=10),
    )


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (Wrong(keys=((float("nan"),),)), "no finite numbers"),
        (Wrong(keys=((float("inf"),),)), "no finite numbers"),
        (Wrong(keys=(("a",),)), "no finite numbers"),
        (Wrong(keys=((1.0,), (2.0,))), "when asked again"),
        (Wrong(), "static, but that of w.0 changed"),
        (Wrong(keys=((1.0,),), does=lambda seq: seq.plan_to(seq.planned_tokens + 1)), "changed what it was shown"),
    ],
)  # fmt: skip
def test_a_wrong_order_policy_is_named(wrong, complaint):
    with pytest.raises(PolicyViolation, match=f"policy Wrong: .*{complaint}"):
        check_order(wrong, one_of_each())


@pytest.mark.parametrize(
    ("admission", "complaint"),
    [
        (True, "no Admission"),
        (
            lambda view: Admission.START if view.memory.pools[0].available_blocks < 30 else Admission.WAIT,
            "but not with",
        ),
    ],
)
def test_a_wrong_admit_policy_is_named(admission, complaint):
    with pytest.raises(PolicyViolation, match=f"policy Wrong: .*{complaint}"):
        check_admit(Wrong(admission=admission), one_of_each())


def test_an_admit_policy_that_waits_for_paused_sequences_is_named():
    paused = make_seq("p", 9, row=0)
    paused.move(SeqState.PAUSED)
    view = make_view(waiting=[make_seq("w")], paused=[paused])
    for answer, complaint in ((Admission.WAIT, "w.0 waits"), (Admission.SKIP, "none of the paused")):
        with pytest.raises(PolicyViolation, match=complaint):
            check_admit(Wrong(admission=answer), view)


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (lambda view: Plan(decode=DecodeGroup((1,), 1)), "view.decoding as a whole"),
        (lambda view: Plan(ends=(0,)), "rows and memory are the scheduler's"),
        (lambda view: Plan(chunks=(next_chunk(view.prefilling[0], 3),) * 2), "more than one chunk"),
        (lambda view: Plan(chunks=(Chunk(row=1, start=0, stop=1),)), "row 1 has no known tokens"),
        (lambda view: Plan(chunks=(Chunk(row=0, start=1, stop=2),)), "its next token is 0"),
        (lambda view: Plan(chunks=(Chunk(row=0, start=0, stop=10),)), "it has 9"),
        (lambda view: Plan(decode=view.decoding, chunks=(next_chunk(view.prefilling[0], 8),)), "the budget is 8"),
    ],
)
def test_a_wrong_batch_policy_is_named(plan, complaint):
    with pytest.raises(PolicyViolation, match=f"policy Wrong: .*{complaint}"):
        check_batch(Wrong(plan=plan), one_of_each(), budget_tokens=8)


def test_a_pass_between_two_layers_goes_on_where_it_stopped():
    seq = make_seq("p", 9, row=0)
    seq.plan_part(6, 2)
    view = make_view(prefilling=[seq])
    right = Chunk(row=0, start=0, stop=6, first_layer=2)
    check_batch(Wrong(plan=lambda view: Plan(chunks=(right,))), view)
    for chunk in (replace(right, first_layer=0), replace(right, stop=9), replace(right, stop_layer=5)):
        with pytest.raises(PolicyViolation):
            check_batch(Wrong(plan=lambda view, chunk=chunk: Plan(chunks=(chunk,))), view)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (Wrong(chosen=(Preemption(7),)), "rows .7. shall yield"),
        (Wrong(chosen=(Preemption(0), Preemption(0))), "shall yield"),
        (Wrong(yields=Preemption(1)), "row 1 is not among the candidates"),
        (Wrong(yields=Preemption(0, Yield.PAUSE)), "frees no memory"),
    ],
)
def test_a_wrong_preempt_policy_is_named(wrong, complaint):
    with pytest.raises(PolicyViolation, match=f"policy Wrong: .*{complaint}"):
        check_preempt(wrong, one_of_each())


def test_a_wrong_retain_policy_is_named():
    with pytest.raises(PolicyViolation, match=r"policy Wrong: blocks .9. shall be evicted, evictable are .1."):
        check_retain(lambda: Wrong(evicts=(9,)), one_of_each(), [1])


@pytest.mark.parametrize(("expected", "bound"), [(0, 16), (16, 15), (16, 17), (17, 17)])
def test_a_wrong_predictor_is_named(expected, bound):
    with pytest.raises(PolicyViolation, match=r"policy Wrong: .*it is expected to reach"):
        check_predict(Wrong(expected=expected, bound=bound), one_of_each())


def test_one_who_promises_a_steady_answer_and_gives_another_is_named():
    class WrongSteady(Wrong, Steady):
        pass

    nobody_decodes = WrongSteady(plan=lambda view: Plan(decode=view.decoding if view.waiting else NO_DECODE))
    with pytest.raises(PolicyViolation, match="is steady, but does not let everybody decode"):
        check_batch(nobody_decodes, one_of_each())
    with pytest.raises(PolicyViolation, match="is steady, but somebody yields"):
        check_preempt(WrongSteady(chosen=(Preemption(1),), yields=Preemption(1)), one_of_each())
