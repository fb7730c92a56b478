"""Prompts that come together and share a prefix: one computes it, the others wait for that, and none for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.core.plan import Plan
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import SeqState
from penstock.core.view import Admission, Preemption, View, Yield, next_chunk
from penstock.engine.loop import Engine
from penstock.policy.presets import TABLES, Policies, build_policies
from tests.engine.oracle import BLOCK_TOKENS, continuation
from tests.engine.test_scheduler import Outcome, make_engine, request

BUDGET_TOKENS = 16
SHARED = list(range(100, 140))  # 10 blocks


def policies_of(follow: bool = True, admit: str = "watermark", beyond_tokens: int = BUDGET_TOKENS) -> Policies:
    return build_policies(
        slots={"admit": admit},
        options={
            "admit": {"follow": follow, "follow_beyond_tokens": beyond_tokens},
            "batch": {"budget_tokens": BUDGET_TOKENS, "long_tokens": 10**6},
        },
    )


def engine_of(policies: Policies | None = None, n_blocks: int = 400, max_rows: int = 32, **options: object) -> Engine:
    return make_engine(n_blocks, policies or policies_of(), max_rows, look_ahead=0, **options)


def plans_of(engine: Engine) -> list[Plan]:
    return engine._executor.plans  # type: ignore[attr-defined, no-any-return]


def computed_tokens(engine: Engine) -> int:
    return sum(chunk.tokens for plan in plans_of(engine) for chunk in plan.chunks)


def begins(engine: Engine) -> dict[int, int]:
    """First token of the prompt -> number of the plan with which it started; for prompts that differ in it."""
    return {start.tokens[0]: k for k, plan in enumerate(plans_of(engine)) for start in plan.starts}


def check_tokens(outcome: Outcome, asked: Sequence[Request]) -> None:
    for one in asked:
        assert outcome.tokens[one.id, 0] == continuation(list(one.prompt), one.sampling.max_tokens or 0)


def burst(n: int, own_tokens: int = 3, shared: Sequence[int] = SHARED, **options: object) -> list[Request]:
    return [request(f"r{k}", [*shared, *([k] * own_tokens)], 3, **options) for k in range(n)]  # type: ignore[arg-type]


@pytest.mark.parametrize("admit", sorted(TABLES["admit"]))
@pytest.mark.parametrize("n", [2, 12])
def test_a_burst_computes_what_its_prompts_share_once(admit, n):
    for follow, times in ((True, 1), (False, n)):
        engine, outcome = engine_of(policies_of(follow, admit)), Outcome()
        asked = burst(n)
        for one in asked:
            engine.add(one)
        outcome.run(engine)
        check_tokens(outcome, asked)
        assert computed_tokens(engine) == times * len(SHARED) + n * 3


def test_identical_prompts_compute_their_last_tokens_each():
    engine, outcome = engine_of(), Outcome()
    for one in burst(5, own_tokens=0):
        engine.add(one)
    outcome.run(engine)
    assert computed_tokens(engine) == len(SHARED) + 4 * BLOCK_TOKENS  # whole blocks, and never all


def test_who_comes_while_the_prefix_is_computed_waits_for_the_rest_of_it():
    engine, outcome = engine_of(), Outcome()
    first, second = burst(2)
    engine.add(first)
    for update in engine.step():
        outcome.note(update)
    engine.add(second)
    outcome.run(engine)
    assert computed_tokens(engine) == len(SHARED) + 2 * 3
    starts = [k for k, plan in enumerate(plans_of(engine)) for _ in plan.starts]
    assert starts == [0, 3], "not after a chunk, and not later than all 40 tokens are planned: 16 a step"


def test_each_level_of_nested_prefixes_is_computed_once():
    deeper = [*SHARED, *range(200, 240)]
    asked = [request(f"{kind}{k}", [*stem, k], 2) for kind, stem in (("a", SHARED), ("b", deeper)) for k in range(6)]
    engine, outcome = engine_of(), Outcome()
    for one in asked:
        engine.add(one)
    outcome.run(engine)
    check_tokens(outcome, asked)
    assert computed_tokens(engine) == 40 + 40 + 12


def test_prompts_that_fit_into_one_step_do_not_wait_for_each_other():
    engine, outcome = engine_of(policies_of(beyond_tokens=86)), Outcome()
    for one in burst(2):
        engine.add(one)
    outcome.run(engine)
    assert len(plans_of(engine)[0].starts) == 2


@pytest.mark.parametrize("why", ["salt", "prompt_logprobs"])
def test_who_can_share_nothing_does_not_wait(why):
    sampling = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=0 if why == "prompt_logprobs" else None)
    engine = engine_of()
    for k in range(3):
        salt = str(k) if why == "salt" else ""
        engine.add(Request(id=f"r{k}", prompt=[*SHARED, k], sampling=sampling, cache_salt=salt))
    engine.step()
    assert len(plans_of(engine)[0].starts) == 3


def test_without_prefix_caching_nobody_waits():
    engine = engine_of(share_prefixes=False)
    for one in burst(3):
        engine.add(one)
    engine.step()
    assert len(plans_of(engine)[0].starts) == 3


def test_samples_of_prompts_that_follow_fork_from_their_own():
    engine, outcome = engine_of(), Outcome()
    for k in range(4):
        engine.add(request(f"r{k}", [*SHARED, k, k], 3, n=3))
    outcome.run(engine)
    assert computed_tokens(engine) == len(SHARED) + 4 * (2 + 2)  # each fork computes the last prompt token again
    assert len(outcome.reasons) == 12


# --- the others -------------------------------------------------------------------------------------------------------


def test_those_behind_start_at_once_and_those_who_follow_keep_their_place():
    """r0 computes, r1 follows; a long one behind starts with r0, but is computed after r1."""
    engine, outcome = engine_of(), Outcome()
    asked = [*burst(2), request("u", [7] * 60, 2)]
    for one in asked:
        engine.add(one)
    outcome.run(engine)
    check_tokens(outcome, asked)
    plans = plans_of(engine)
    rows = {start.tokens[-1]: start.row for plan in plans for start in plan.starts}
    first = {row: next(k for k, p in enumerate(plans) if any(c.row == row for c in p.chunks)) for row in rows.values()}
    assert [start.tokens[-1] for start in plans[0].starts] == [0, 7]
    order = [chunk.row for chunk in plans[first[rows[1]]].chunks]
    assert order.index(rows[1]) < order.index(rows[7]), "the one that overtook it in the queue is computed before it"


def test_a_row_is_set_aside_for_those_who_follow():
    """Two rows: one computes, the other is for the one that follows; those behind would decode in it for long."""
    engine, outcome = engine_of(max_rows=2), Outcome()
    for one in [*burst(2), *(request(f"u{k}", [k + 50] * 5, 100) for k in range(3))]:
        engine.add(one)
    outcome.run(engine)
    began = [start.tokens[-1] for plan in plans_of(engine) for start in plan.starts]
    assert began == [0, 1, 50, 51, 52]


def test_memory_is_set_aside_for_those_who_follow():
    """20 blocks: 11 for the first; one of 8 behind the second would leave too little for that."""
    engine, outcome = engine_of(n_blocks=24), Outcome()
    asked = [*burst(2), request("u", [50] * 30, 4)]
    for one in asked:
        engine.add(one)
    outcome.run(engine)
    check_tokens(outcome, asked)
    assert [start.tokens[-1] for plan in plans_of(engine) for start in plan.starts] == [0, 1, 50]


@st.composite
def prompts(draw) -> list[list[int]]:
    """Of two families with a common beginning of any length, and of none."""
    stems = [[1] * 60, [1] * 30 + [2] * 30]
    made = []
    for k in range(draw(st.integers(2, 10))):
        stem = draw(st.sampled_from([*stems, [1000 + k] * 60]))
        made.append([*stem[: draw(st.integers(0, 60))], *([k + 10] * draw(st.integers(1, 30)))])
    return made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=prompts(), gaps=st.lists(st.integers(0, 4), min_size=10, max_size=10))
@example(made=[[10], [11] * 8, [*[1] * 8, 12], [*[1] * 8, 13]], gaps=[0] * 10)  # the first is cut at its seventh token
def test_a_first_token_comes_one_step_later_at_most_and_fewer_tokens_are_computed(made, gaps):
    """One output each, so that steps have room for prompts alone.

    A step later: a prompt would have fitted, whole, into the step in which the one that it follows gets its last chunk.
    """
    first: dict[bool, list[int]] = {}
    computed: dict[bool, int] = {}
    for follow in (False, True):
        engine, ends, waits, late = engine_of(policies_of(follow)), {}, list(enumerate(made)), 0
        step = 0
        while waits or engine.has_work:
            while waits and (late <= 0 or not engine.has_work):
                k, prompt = waits.pop(0)
                engine.add(request(f"r{k:02}", prompt, 1, arrival_s=float(k)))
                late = gaps[k]
            late -= 1
            step += 1
            ends |= {update.request_id: step for update in engine.step() if update.finish is not None}
            assert step < 1000
        first[follow] = [ends[f"r{k:02}"] for k in range(len(made))]
        computed[follow] = computed_tokens(engine)
    assert computed[True] <= computed[False]
    assert all(with_it <= without + 1 for with_it, without in zip(first[True], first[False], strict=True)), first


# --- when the one that is followed does not come to its end -----------------------------------------------------------


def test_when_the_first_is_cancelled_the_next_goes_on_from_what_it_computed():
    engine, outcome = engine_of(), Outcome()
    asked = burst(5)
    for one in asked:
        engine.add(one)
    for update in engine.step():
        outcome.note(update)
    engine.abort("r0")
    outcome.run(engine)
    check_tokens(outcome, asked[1:])
    assert computed_tokens(engine) == len(SHARED) + 4 * 3
    assert [len(plan.starts) for plan in plans_of(engine)][:4] == [1, 1, 0, 3]


@dataclass
class YieldOnce:
    """The first row yields before step `at`; who has to is the last."""

    how: Yield
    at: int = 1
    n_asked: int = 0

    def choose(self, view: View) -> Sequence[Preemption]:
        self.n_asked += 1
        return (Preemption(view.running[0].row or 0, self.how),) if self.n_asked == self.at + 1 else ()

    def victim(self, view: View, candidates: Sequence[object]) -> Preemption:
        raise AssertionError("there is memory for all")


class NotTheFirst:
    """Once r0 has yielded, it goes on when all others are done."""

    def __init__(self) -> None:
        self._usual = policies_of().admit

    def admit(self, seq, view):
        has_yielded = seq.id == "r0.0" and (seq.state is not SeqState.WAITING or seq.preemptions > 0)
        if has_yielded and (len(view.waiting) > 1 or any(other.state is SeqState.RUNNING for other in view.running)):
            return Admission.SKIP
        return self._usual.admit(seq, view)


@pytest.mark.parametrize("how", list(Yield))
def test_when_the_first_yields_the_next_one_computes_what_is_missing(how):
    policies = replace(policies_of(), preempt=YieldOnce(how), admit=NotTheFirst())
    engine, outcome = engine_of(policies, n_host_blocks=(40,)), Outcome()
    asked = burst(5)
    for one in asked:
        engine.add(one)
    outcome.run(engine)
    check_tokens(outcome, asked)
    starts = [[start.tokens[-1] for start in plan.starts] for plan in plans_of(engine)]
    assert starts[:2] == [[0], [1]], "whoever is next did not start at once"


class NeverTheFirst:
    """Computes all prompts but that of row `row`, while there are others or `is_stuck`; then that, too."""

    def __init__(self, row: int) -> None:
        self.row, self.n_stuck = row, 0

    def batch(self, view: View) -> Plan:
        others = [seq for seq in view.prefilling if seq.row != self.row]
        is_stuck = not others and len(view.waiting) > 0
        self.n_stuck += is_stuck
        chosen = () if is_stuck and view.decoding.rows else others or view.prefilling
        chunks = tuple(next_chunk(seq, min(4, seq.prefill_left_tokens)) for seq in chosen)
        return Plan(decode=view.decoding, chunks=chunks)


def test_patience_ends_when_the_first_gets_no_further():
    """r0 is never computed while somebody waits; another one decodes meanwhile, so that there are steps."""
    batch = NeverTheFirst(row=1)
    policies = replace(policies_of(), batch=batch)
    engine, outcome = engine_of(policies), Outcome()
    engine.add(request("other", [9] * 4, max_tokens=400))
    for _ in range(3):
        for update in engine.step():
            outcome.note(update)
    asked = burst(3)
    for one in asked:
        engine.add(one)
    outcome.run(engine)
    check_tokens(outcome, asked)
    ahead_tokens, shared_tokens = 43, 40
    assert batch.n_stuck == ahead_tokens + shared_tokens, "each of these steps counts as one token"


def test_waiting_grows_with_what_is_shared_and_ends_with_it():
    """A chain: each prompt is the one before and 40 tokens more. All are computed once, in order."""
    stems = [[token for k in range(n + 1) for token in range(100 * k, 100 * k + 40)] for n in range(5)]
    asked = [request(f"r{n}", [*stem, 7], 2) for n, stem in enumerate(stems)]
    engine, outcome = engine_of(), Outcome()
    for one in asked:
        engine.add(one)
    outcome.run(engine)
    check_tokens(outcome, asked)
    assert computed_tokens(engine) == 5 * 40 + 5
