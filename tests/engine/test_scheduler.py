"""The scheduler against an executor that notices every mistake (see oracle.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.cache.memory import BLOCKS_AHEAD
from penstock.core.clock import VirtualClock
from penstock.core.errors import InvalidRequest, NeverFits, Overloaded, PolicyViolation, PromptTooLong
from penstock.core.plan import Chunk, Plan
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.core.view import View, next_chunk
from penstock.engine.limits import QueueLimits
from penstock.engine.loop import Engine, build_engine
from penstock.engine.scheduler import SEED_STRIDE
from penstock.policy.presets import PRESETS, Policies, build_policies
from tests.engine.oracle import N_LAYERS, OracleExecutor, continuation, facts
from tests.engine.unruly import Outcome, RandomLayers, Restless


def make_engine(n_blocks: int = 64, policies: Policies | None = None, max_rows: int = 8, **options: object) -> Engine:
    executor = OracleExecutor(max_rows=max_rows)
    executor.allocate((n_blocks,))
    return build_engine(executor, (n_blocks,), policies or build_policies(), clock=VirtualClock(), **options)  # type: ignore[arg-type]


def request(name: str, prompt: Sequence[int], max_tokens: int = 8, n: int = 1, **options: object) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, n=n)
    return Request(id=name, prompt=list(prompt), sampling=sampling, **options)  # type: ignore[arg-type]


def test_a_request_gets_the_continuation_of_its_prompt():
    engine, outcome = make_engine(), Outcome()
    engine.add(request("a", [1, 2, 3], max_tokens=20))
    outcome.run(engine)
    assert outcome.tokens["a", 0] == continuation([1, 2, 3], 20)
    assert outcome.reasons["a", 0] is FinishReason.LENGTH


def test_a_stop_token_ends_a_sequence_and_its_extra_token_is_dropped():
    wanted = continuation([5], 6)
    engine, outcome = make_engine(), Outcome()
    sampling = SamplingParams(max_tokens=50, temperature=0.0, stop_token_ids=(wanted[-1],))
    engine.add(Request(id="a", prompt=[5], sampling=sampling))
    outcome.run(engine)
    assert outcome.tokens["a", 0] == wanted
    assert outcome.reasons["a", 0] is FinishReason.STOP


def test_samples_of_one_prompt_share_its_blocks_and_draw_apart():
    engine, outcome = make_engine(), Outcome()
    prompt = list(range(10))
    engine.add(request("a", prompt, n=4, max_tokens=12))
    outcome.run(engine)
    for k in range(4):
        assert outcome.tokens["a", k] == continuation(prompt, 12, seed=k * SEED_STRIDE % 2**63)
    computed = sum(chunk.tokens for plan in engine._executor.plans for chunk in plan.chunks)  # type: ignore[attr-defined]
    assert computed == len(prompt) + 3  # each fork computes the last prompt token again, nothing else


def test_a_prefix_that_the_cache_holds_is_not_computed_again():
    engine, outcome = make_engine(), Outcome()
    prompt = list(range(21))
    engine.add(request("first", prompt))
    outcome.run(engine)
    engine.add(request("second", prompt))
    outcome.run(engine)
    assert outcome.tokens["second", 0] == outcome.tokens["first", 0]
    assert engine.scheduler.memory.counters.hit_tokens == 20


def test_a_salt_keeps_prefixes_apart():
    engine, outcome = make_engine(), Outcome()
    for name, salt in (("a", "x"), ("b", "y")):
        engine.add(request(name, range(20), cache_salt=salt))
        outcome.run(engine)
    assert engine.scheduler.memory.counters.hit_tokens == 0


def test_sequences_that_do_not_fit_together_take_turns_by_recompute():
    engine, outcome = make_engine(n_blocks=12), Outcome()
    for k in range(4):
        engine.add(request(f"r{k}", [k] * 8, max_tokens=24))
    outcome.run(engine)
    assert engine.scheduler.preemptions > 0
    for k in range(4):
        assert outcome.tokens[f"r{k}", 0] == continuation([k] * 8, 24)


def test_worst_case_admission_never_preempts():
    engine, outcome = make_engine(n_blocks=12, policies=build_policies("conservative")), Outcome()
    for k in range(6):
        engine.add(request(f"r{k}", [k] * 8, max_tokens=24))
    outcome.run(engine)
    assert engine.scheduler.preemptions == 0
    assert len(outcome.reasons) == 6


def test_an_aborted_request_frees_its_blocks_at_once():
    engine, outcome = make_engine(), Outcome()
    engine.add(request("a", range(30), max_tokens=100))
    for _ in range(5):
        outcome.take(engine)
        engine.step()
    engine.abort("a")
    assert engine.scheduler.memory.pools[0].available_blocks == engine.scheduler.memory.pools[0].total_blocks
    outcome.run(engine)
    assert outcome.reasons["a", 0] is FinishReason.ABORT


def test_a_stop_string_found_by_the_front_end_counts_only_its_tokens():
    engine = make_engine()
    engine.add(request("a", [1, 2], max_tokens=100))
    for _ in range(6):
        engine.step()
    engine.finish("a", 0, output_tokens=2)
    last = engine.take_updates()[-1]
    assert last.finish is FinishReason.STOP
    assert last.stats is not None
    assert last.stats.output_tokens == 2


def test_bad_requests_are_refused_and_change_nothing():
    engine = make_engine(n_blocks=8)
    with pytest.raises(PromptTooLong, match="context is 512"):
        engine.add(request("a", [1] * 512))
    with pytest.raises(NeverFits, match="holds 8 blocks"):
        engine.add(request("b", [1] * 40))
    with pytest.raises(InvalidRequest, match=r"token id 50000 is not in 0\.\.49999"):
        engine.add(request("c", [50_000]))
    engine.add(request("d", [1]))
    with pytest.raises(InvalidRequest, match="in use"):
        engine.add(request("d", [1]))
    assert engine.scheduler.ledger.accepted == 1
    assert sum(engine.scheduler.ledger.refused.values()) == 4


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("logit_bias", {"logit_bias": {0: 1.0, 50_000: 1.0}}),
        ("stop_token_ids", {"stop_token_ids": (3, 50_000)}),
        ("allowed_token_ids", {"allowed_token_ids": (3, 50_000)}),
        ("bad_word_ids", {"bad_word_ids": ((3,), (4, 50_000))}),
        ("bad_words", {"bad_words": ("word",)}),
        ("allowed_token_ids", {"allowed_token_ids": (3, 4), "bad_word_ids": ((3,), (4,))}),
        ("allowed_token_ids", {"allowed_token_ids": (3,), "stop_token_ids": (3,), "min_tokens": 1}),
    ],
)
def test_parameters_that_the_model_cannot_follow_are_refused_by_name(param, options):
    engine = make_engine()
    with pytest.raises(InvalidRequest, match=param) as wrong:
        engine.add(Request(id="a", prompt=[1], sampling=SamplingParams(**options)))
    assert wrong.value.param == param
    engine.add(Request(id="a", prompt=[1], sampling=SamplingParams(logit_bias={49_999: 1.0})))
    assert engine.scheduler.ledger.accepted == 1


def test_the_queue_is_bounded_by_samples_and_by_tokens():
    engine = make_engine(limits=QueueLimits(max_queued_requests=4, max_queued_tokens=100))
    engine.add(request("a", [1], n=3))
    with pytest.raises(Overloaded, match="3 of at most 4 requests") as full:
        engine.add(request("b", [1], n=2))
    assert full.value.retry_after_s >= 1.0
    with pytest.raises(Overloaded, match="prompt tokens"):
        engine.add(request("c", [1] * 100))
    engine.add(request("d", [1]))
    assert dict(engine.scheduler.ledger.refused) == {"max_queued_requests": 1, "max_queued_tokens": 1}


def test_outputs_are_limited_by_what_the_pool_can_ever_hold():
    engine, outcome = make_engine(n_blocks=8), Outcome()
    engine.add(request("a", [1] * 4, max_tokens=500))
    outcome.run(engine)
    assert 0 < len(outcome.tokens["a", 0]) <= 28
    assert outcome.reasons["a", 0] is FinishReason.LENGTH


def test_an_unchanged_batch_is_the_same_group_object():
    engine = make_engine()
    engine.add(request("a", [1, 2], max_tokens=30))
    for _ in range(20):
        engine.step()
    plans = engine._executor.plans  # type: ignore[attr-defined]
    steady = plans[2:]
    assert all(plan.decode is steady[0].decode for plan in steady)
    grown = [plan.id for plan in steady if plan.grows]  # some blocks of four tokens at a time, nothing else
    assert grown
    assert all(b - a == 4 * BLOCKS_AHEAD for a, b in pairwise(grown))
    assert not any(plan.starts or plan.chunks or plan.ends for plan in steady)


# --- wrong policies are errors with a name ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """A batch policy that answers what it is told."""

    answer: Plan | None = None
    chunk: Chunk | None = None

    def batch(self, view: View) -> Plan:
        return Plan(decode=view.decoding, chunks=(self.chunk,)) if self.chunk else self.answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("chunk", "complaint"),
    [
        (Chunk(row=5, start=0, stop=2), "row 5 has no known tokens"),
        (Chunk(row=0, start=1, stop=2), "its next token is 0"),
        (Chunk(row=0, start=0, stop=9), "it has 4"),
        (Chunk(row=0, start=0, stop=4, first_layer=1), "not 0"),
        (Chunk(row=0, start=0, stop=4, stop_layer=N_LAYERS + 1), "stops at layer 4 of 3"),
    ],
)
def test_a_batch_policy_that_answers_nonsense_is_named(chunk, complaint):
    engine = make_engine(policies=replace_batch(Answers(chunk=chunk)))
    engine.add(request("a", [1, 2, 3, 4]))
    with pytest.raises(PolicyViolation, match=f"Answers.*{complaint}"):
        engine.step()


def replace_batch(policy: object) -> Policies:

    return replace(build_policies(), batch=policy)  # type: ignore[type-var]


# --- every interleaving gives every request its own tokens ------------------------------------------------------------


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.integers(1, 30),  # prompt tokens: few families, so that prefixes are shared
            st.integers(0, 2),  # family
            st.integers(1, 14),  # max_tokens
            st.sampled_from([1, 1, 1, 3]),  # n
        ),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
    ),
    min_size=3,
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=actions,
    n_blocks=st.integers(14, 40),
    max_rows=st.integers(1, 6),
    look_ahead=st.integers(0, 2),
    preset=st.sampled_from(sorted(PRESETS)),
    cuts=st.one_of(st.none(), st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(any)),
    restless=st.one_of(st.none(), st.integers(2, 5)),
    n_host_blocks=st.sampled_from([0, 3, 10, 40]),
)
def test_however_requests_are_served_each_gets_its_own_tokens(
    actions, n_blocks, max_rows, look_ahead, preset, cuts, restless, n_host_blocks
):

    policies = build_policies(preset, options={"batch": {"budget_tokens": 16}, "admit": {"follow_beyond_tokens": 0}})
    if cuts is not None:
        policies = replace(policies, batch=RandomLayers(tuple(cuts)))
    if restless is not None:
        policies = replace(policies, preempt=Restless(restless))
    clock = VirtualClock()
    executor = OracleExecutor(facts=facts(max_model_tokens=64), max_rows=max_rows)
    executor.allocate((n_blocks,))
    engine = build_engine(
        executor, (n_blocks,), policies, n_host_blocks=(n_host_blocks,), clock=clock, look_ahead=look_ahead
    )
    outcome = Outcome()
    asked: dict[str, Request] = {}
    aborted: set[str] = set()

    def step() -> None:
        clock.advance(1.0)
        for update in engine.step():
            outcome.note(update)
        engine.scheduler.audit()

    for action in actions:
        if action[0] == "add":
            _, length, family, max_tokens, n = action
            name = f"r{len(asked)}"
            made = request(name, [family] * length, max_tokens, n, arrival_s=clock.now_s(), priority=family)
            asked[name] = made
            engine.add(made)
        elif action[0] == "step":
            for _ in range(action[1]):
                step()
        elif asked:
            name = f"r{action[1] % len(asked)}"
            engine.abort(name)
            aborted.add(name)
            outcome.take(engine)
    for _ in range(4000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work, "the engine does not come to an end"
    for name, made in asked.items():
        for k in range(made.sampling.n):
            got = outcome.tokens[name, k]
            limit = min(made.sampling.max_tokens or 0, 64 - len(made.prompt))
            wanted = continuation(made.prompt, limit, seed=k * SEED_STRIDE % 2**63)
            assert got == wanted[: len(got)]
            if name not in aborted:
                assert got == wanted
                assert outcome.reasons[name, k] is FinishReason.LENGTH
    ledger = engine.scheduler.ledger
    assert ledger.accepted == len(asked) == sum(ledger.ended.values())
    assert engine.scheduler.memory.pools[0].available_blocks == n_blocks
    if n_host_blocks:
        (host,) = engine.scheduler.memory.host.groups
        assert host.pool.available == n_host_blocks


def test_layers_can_be_planned_one_at_a_time_beside_decodes():
    @dataclass(frozen=True)
    class OneLayer:
        def batch(self, view: View) -> Plan:
            chunks = [
                Chunk(
                    row=seq.row or 0,
                    start=seq.planned_tokens,
                    stop=seq.total_tokens,
                    first_layer=seq.layers_done,
                    stop_layer=seq.layers_done + 1,
                )
                for seq in view.prefilling
            ]
            return Plan(decode=view.decoding, chunks=tuple(chunks))

    engine, outcome = make_engine(policies=replace_batch(OneLayer())), Outcome()
    engine.add(request("a", [1] * 5, max_tokens=12))
    engine.step()
    engine.add(request("b", [2] * 9, max_tokens=12))
    outcome.run(engine)
    assert outcome.tokens["a", 0] == continuation([1] * 5, 12)
    assert outcome.tokens["b", 0] == continuation([2] * 9, 12)


def test_a_chunk_of_the_view_goes_through_every_layer():
    class Seen:
        row, planned_tokens = 3, 8

    assert next_chunk(Seen(), 4) == Chunk(row=3, start=8, stop=12)  # type: ignore[arg-type]
