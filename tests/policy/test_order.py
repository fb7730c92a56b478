"""Nobody waits for ever where the policy promises it, however many better-ranked requests keep coming."""

from __future__ import annotations

import pytest

from penstock.core.request import Objective
from penstock.engine.queue import WaitQueue
from penstock.policy.order import ORDER
from penstock.policy.presets import build_policies
from tests.policy.views import Blocks, make_seq, make_view

TICK_S = 0.5

# name -> (the one that ranks last, those that keep coming, seconds after which it must have been served).
# What a policy promises is in its docstring; `priority` promises nothing of the kind.
PROMISES = {
    "fcfs": ({"prompt_tokens": 5000}, {"prompt_tokens": 1}, 10 * TICK_S),
    "edf": ({}, {"objective": Objective(ttft_s=0.1)}, 60.0),
    "shortest-prefill": ({"prompt_tokens": 600}, {"prompt_tokens": 1}, 600 / 15.0),
    "longest-prefix-match": ({"prompt_tokens": 50}, {"prompt_tokens": 50}, 10.0),
}
STARVES = {"priority"}


def test_every_order_policy_is_judged():
    assert PROMISES.keys() | STARVES == ORDER.keys()
    assert not PROMISES.keys() & STARVES


@pytest.mark.parametrize("name", PROMISES)
def test_under_constant_arrival_of_better_ranked_requests_everybody_is_served(name):
    """One request is served each tick and a better-ranked one arrives each tick, so the queue never empties."""
    last, better, within_s = PROMISES[name]
    queue = WaitQueue(build_policies(slots={"order": name}).order)
    hits: dict[str, int] = {}
    for k in range(8):  # who is there already
        queue.add(make_seq(f"before{k}", **better))
    victim = make_seq("victim", **last)
    queue.add(victim)
    now_s, waited = 0.0, 0
    while victim in queue.members():
        now_s += TICK_S
        assert now_s <= within_s + 10 * TICK_S, f"still waiting after {now_s} s"
        newcomer = make_seq(f"r{now_s}", arrival_s=now_s, **better)
        hits[newcomer.id] = newcomer.total_tokens // 2
        queue.add(newcomer)
        view = make_view(waiting=queue.members(), memory=Blocks(hits=hits), now_s=now_s)
        queue.remove(queue.ordered(view)[0])
        waited += 1
    if name != "fcfs":
        assert waited > 12, "it was not overtaken: the test shows nothing"


def test_ties_are_broken_by_arrival_and_then_by_id():
    queue = WaitQueue(build_policies(slots={"order": "priority"}).order)
    for name, arrival_s in (("b", 1.0), ("c", 0.0), ("a", 1.0)):
        queue.add(make_seq(name, arrival_s=arrival_s))
    assert [seq.request.id for seq in queue.ordered(make_view())] == ["c", "a", "b"]


def test_the_queue_counts_the_tokens_that_wait():
    queue = WaitQueue(build_policies().order)
    seqs = [make_seq(f"r{k}", prompt_tokens=k + 1, outputs=3) for k in range(4)]
    for seq in seqs:
        queue.add(seq)
    assert (len(queue), queue.tokens) == (4, 10)
    for seq in seqs:
        queue.remove(seq)
    assert (len(queue), queue.tokens) == (0, 0)


def test_a_sequence_whose_deadline_counts_from_now_on_is_ranked_by_it():
    """Before its first token ttft_s is due, afterwards deadline_s: the one who got its token waits behind the other."""
    limits = Objective(ttft_s=1.0, deadline_s=50.0)
    edf = build_policies(slots={"order": "edf"}).order
    keys = [edf.key(make_seq("a", outputs=n, objective=limits), make_view()) for n in (0, 1)]
    assert keys == [(1.0,), (50.0,)]


def test_beyond_what_is_looked_up_the_cache_does_not_count():
    policies = build_policies(slots={"order": "longest-prefix-match"}, options={"order": {"max_looked_up": 2}})
    seqs = [make_seq(f"r{k}", arrival_s=float(k)) for k in range(3)]
    memory = Blocks(hits={"r2.0": 4})
    few, many = make_view(waiting=seqs[1:], memory=memory), make_view(waiting=seqs, memory=memory)
    assert policies.order.key(seqs[2], few) < policies.order.key(seqs[1], few)
    assert policies.order.key(seqs[2], many) > policies.order.key(seqs[1], many)
