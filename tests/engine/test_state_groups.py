"""The real scheduler over memory of several kinds: whatever happens, each group has what the next pass reads."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.cache.host import HostTier
from penstock.cache.memory import Memory
from penstock.core.clock import VirtualClock
from penstock.core.sequence import FinishReason
from penstock.engine.loop import Engine
from penstock.engine.scheduler import SEED_STRIDE, Scheduler
from penstock.policy.presets import build_policies
from tests.cache.test_groups import KINDS
from tests.cache.toy_groups import KEY_TOKENS
from tests.engine.group_oracle import GroupOracle
from tests.engine.oracle import continuation
from tests.engine.test_scheduler import Outcome, request
from tests.policy.views import Costs

MODELS = {"hybrid": ("paged", "recurrent"), "all three": ("paged", "windowed", "recurrent"), "ring": ("windowed",)}


def make_engine(kinds, n_blocks, max_rows=6, look_ahead=1, n_host_blocks=0, **options):
    groups = tuple(KINDS[kind](n_blocks) for kind in kinds)
    executor = GroupOracle(groups, max_rows=max_rows)
    policies = build_policies(**options)
    host = HostTier(groups, (n_host_blocks,) * len(groups), policies.new_retain, Costs()) if n_host_blocks else None
    scheduler = Scheduler(executor.facts, Memory(groups, KEY_TOKENS, host=host), policies, max_rows)
    return Engine(scheduler, executor, VirtualClock(), look_ahead)


@pytest.mark.parametrize("kinds", MODELS.values(), ids=MODELS)
def test_a_prefix_is_taken_over_from_every_group(kinds):
    engine, outcome = make_engine(kinds, 40), Outcome()
    prompt = [1] * 16 + [2]
    for name in ("first", "second"):
        engine.add(request(name, prompt, max_tokens=3))
        outcome.run(engine)
        assert outcome.tokens[name, 0] == continuation(prompt, 3)
    assert engine.scheduler.memory.counters.hit_tokens == 16


@pytest.mark.parametrize("kinds", MODELS.values(), ids=MODELS)
def test_samples_of_one_prompt_share_what_every_group_still_has(kinds):
    engine, outcome = make_engine(kinds, 60), Outcome()
    prompt = [1] * 21
    engine.add(request("a", prompt, n=3, max_tokens=12))
    outcome.run(engine)
    for k in range(3):
        assert outcome.tokens["a", k] == continuation(prompt, 12, seed=k * SEED_STRIDE % 2**63)


@pytest.mark.parametrize("kinds", MODELS.values(), ids=MODELS)
def test_sequences_that_do_not_fit_together_take_turns(kinds):
    engine, outcome = make_engine(kinds, 9), Outcome()
    for k in range(5):
        engine.add(request(f"r{k}", [k] * 8, max_tokens=22))
    outcome.run(engine)
    assert engine.scheduler.preemptions > 0
    for k in range(5):
        assert outcome.tokens[f"r{k}", 0] == continuation([k] * 8, 22)


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.sampled_from([1, 4, 7, 8, 9, 16, 17, 24, 25]), st.integers(0, 1), st.integers(1, 20),
            st.sampled_from([1, 1, 2]),
        ),
        st.tuples(st.just("step"), st.integers(1, 8)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
    ),
    min_size=3,
    max_size=25,
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=actions,
    kinds=st.sampled_from(sorted(MODELS.values())),
    n_blocks=st.integers(14, 40),
    max_rows=st.integers(1, 5),
    look_ahead=st.integers(0, 2),
    budget_tokens=st.sampled_from([5, 16, 64]),
    n_host_blocks=st.sampled_from([0, 4, 12, 60]),
)
def test_however_requests_are_served_every_group_has_what_is_read(
    actions, kinds, n_blocks, max_rows, look_ahead, budget_tokens, n_host_blocks
):
    options = {
        "batch": {"budget_tokens": budget_tokens}, "preempt": {"swap_below": 1e9}, "admit": {"follow_beyond_tokens": 0},
    }  # fmt: skip
    engine = make_engine(kinds, n_blocks, max_rows, look_ahead, n_host_blocks, options=options)
    outcome, asked, aborted = Outcome(), {}, set()

    def step():
        for update in engine.step():
            outcome.note(update)
        engine.scheduler.audit()

    for action in actions:
        if action[0] == "add":
            _, length, family, max_tokens, n = action
            made = request(f"r{len(asked)}", [family] * length, max_tokens, n)
            asked[made.id] = made
            engine.add(made)
        elif action[0] == "step":
            for _ in range(action[1]):
                step()
        elif asked:
            name = f"r{action[1] % len(asked)}"
            engine.abort(name)
            aborted.add(name)
            outcome.take(engine)
    for _ in range(3000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work, "the engine does not come to an end"
    for name, made in asked.items():
        for k in range(made.sampling.n):
            wanted = continuation(made.prompt, made.sampling.max_tokens, seed=k * SEED_STRIDE % 2**63)
            got = outcome.tokens[name, k]
            assert got == (wanted[: len(got)] if name in aborted else wanted)
            assert name in aborted or outcome.reasons[name, k] is FinishReason.LENGTH
    memory = engine.scheduler.memory
    for group in memory.groups:
        assert group.pool.available == n_blocks
    for host in memory.host.groups if memory.host else ():
        assert host.pool.available == n_host_blocks
