"""What single policies promise beyond the contract of their slot."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.sequence import FinishReason, SeqState
from penstock.core.view import Admission, Preemption, Yield
from penstock.policy.admit.watermark import Watermark
from penstock.policy.admit.worst_case import WorstCase
from penstock.policy.batch.decode_first import DecodeFirst
from penstock.policy.batch.prefill_first import PrefillFirst
from penstock.policy.predict.empirical_quantile import EmpiricalQuantile
from penstock.policy.predict.max_tokens import MaxTokens
from penstock.policy.preempt.cheapest import Cheapest
from penstock.policy.preempt.newest import Newest
from tests.policy.views import Blocks, Costs, make_seq, make_view, views

some_views = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# --- batch ------------------------------------------------------------------------------------------------------------


@some_views
@given(
    view=views(),
    budget_tokens=st.integers(1, 4096),
    long_tokens=st.integers(1, 1000),
    long_prefills=st.integers(1, 3),
)
def test_decode_first_takes_prompts_in_order_but_few_long_ones(view, budget_tokens, long_tokens, long_prefills):
    choice = DecodeFirst(budget_tokens, long_tokens, long_prefills).batch(view)
    assert choice.decode is view.decoding
    by_row = {seq.row: seq for seq in view.prefilling}
    rows = [chunk.row for chunk in choice.chunks]
    longs = [seq.row for seq in view.prefilling if seq.prefill_left_tokens > long_tokens]
    allowed = [seq.row for seq in view.prefilling if seq.row not in longs[long_prefills:]]
    assert rows == allowed[: len(rows)], "somebody was passed over"
    assert sum(row in longs for row in rows) <= long_prefills
    whole = [chunk.tokens == by_row[chunk.row].prefill_left_tokens for chunk in choice.chunks]
    assert all(whole[:-1]), "only the last chunk may be cut"
    if not all(whole) or len(rows) < len(allowed):
        assert choice.tokens == max(budget_tokens, view.decoding.tokens + 1), "tokens were left while prompts waited"


@some_views
@given(view=views(), budget_tokens=st.integers(1, 4096))
def test_prefill_first_does_not_decode_beside_prompts_and_spends_its_budget_on_them(view, budget_tokens):
    choice = PrefillFirst(budget_tokens).batch(view)
    assert (choice.decode is view.decoding) != bool(choice.chunks)
    left = sum(seq.prefill_left_tokens for seq in view.prefilling)
    assert sum(chunk.tokens for chunk in choice.chunks) == min(left, budget_tokens)
    rows = [chunk.row for chunk in choice.chunks]
    assert rows == [seq.row for seq in view.prefilling][: len(rows)]


# --- admit ------------------------------------------------------------------------------------------------------------


def test_watermark_keeps_a_reserve_for_those_who_decode_but_not_when_nobody_runs():
    seq = make_seq("a", prompt_tokens=38)  # 10 blocks with its first output
    other = make_seq("b", outputs=1, row=0, planned=4)
    policy = Watermark(reserve_frac=0.1)
    for running, needed, otherwise in (([other], 16, Admission.WAIT), ([], 10, Admission.SKIP)):
        for available in (needed - 1, needed):
            view = make_view(waiting=[seq], decoding=running, memory=Blocks(4, 64, available))
            assert policy.admit(seq, view) is (Admission.START if available >= needed else otherwise)


def test_watermark_counts_what_admitted_prompts_will_still_take():
    seq = make_seq("a", prompt_tokens=3)
    halfway = make_seq("b", prompt_tokens=39, row=0, planned=20)
    memory = Blocks(4, 64, available_blocks=6, held={"b.0": 5})
    assert Watermark(0.0).admit(seq, make_view([seq], [halfway], memory=memory)) is Admission.START
    memory = replace(memory, available_blocks=5)
    assert Watermark(0.0).admit(seq, make_view([seq], [halfway], memory=memory)) is Admission.WAIT


def test_a_paused_sequence_that_runs_alone_needs_no_reserve():
    """It holds all of the pool but one block; with nobody else to wait for, waiting would last for ever."""
    seq = make_seq("a", prompt_tokens=252, outputs=1, row=0, planned=252)
    seq.move(SeqState.PAUSED)
    view = make_view(paused=[seq], memory=Blocks(4, 64, available_blocks=1, held={"a.0": 63}))
    assert Watermark(reserve_frac=0.02).admit(seq, view) is Admission.START


@some_views
@given(view=views())
def test_worst_case_admits_only_what_fits_if_everybody_puts_out_all_they_may(view):
    memory = view.memory

    def worst(seq):
        return memory.blocks_for(len(seq.request.prompt) + seq.output_limit_tokens)

    for seq in view.waiting:
        others = [running for running in view.running if running is not seq]
        before = [*others, *view.following]
        fits = worst(seq) + sum(map(worst, before)) <= memory.total_blocks
        nobody_runs = not any(running.state is SeqState.RUNNING for running in others)
        must_go_on = nobody_runs and seq.state is SeqState.PAUSED
        answer = WorstCase().admit(seq, view)
        assert (answer in (Admission.START, Admission.FOLLOW)) == (fits or must_go_on)


# --- preempt ----------------------------------------------------------------------------------------------------------


def test_the_newest_of_the_least_important_yields():
    seqs = [
        make_seq("old", row=0, arrival_s=1.0),
        make_seq("new", row=1, arrival_s=2.0),
        make_seq("newer but important", row=2, arrival_s=3.0, priority=-1),
    ]
    assert Newest().victim(make_view(prefilling=seqs), seqs).row == 1


@pytest.mark.parametrize(
    ("n_bytes", "swap_below", "how"),
    [
        (10**6, 1.0, Yield.SWAP),  # 2 ms to copy there and back, 8 ms to compute
        (4 * 10**6, 1.0, Yield.RECOMPUTE),
        (4 * 10**6, 1.1, Yield.SWAP),
        (0, 0.0, Yield.RECOMPUTE),
        (None, 1e9, Yield.RECOMPUTE),  # it cannot be swapped
    ],
)
def test_who_yields_is_swapped_where_that_costs_less(n_bytes, swap_below, how):
    seqs = [make_seq(f"s{k}", 8, row=k, planned=8, arrival_s=k) for k in range(2)]
    memory = Blocks(swaps={} if n_bytes is None else {seqs[1].id: n_bytes})
    view = make_view(prefilling=seqs, memory=memory, costs=Costs(token_s=1e-3, byte_s=1e-9))
    assert Cheapest(swap_below=swap_below).victim(view, seqs) == Preemption(1, how)


# --- predict ----------------------------------------------------------------------------------------------------------


def taught(lengths, category="", **options):
    predictor = EmpiricalQuantile(**options)
    for k, outputs in enumerate(lengths):
        seq = make_seq(f"f{k}", outputs=outputs, limit=10_000, category=category)
        seq.finish_reason = FinishReason.STOP
        predictor.on_finish(seq, make_view())
    return predictor


@pytest.mark.parametrize("frac", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("generated", [0, 50])
def test_the_quantile_covers_the_share_that_it_says(frac, generated):
    """Among answers that are longer than `generated`, drawn alike, about `frac` are no longer than the bound."""
    draw = random.Random(7)
    predictor = taught((1 + int(draw.expovariate(1 / 120)) for _ in range(2000)), window=2000, bound_frac=frac)
    seq = make_seq("a", outputs=generated, limit=10_000)
    bound = predictor.bound_tokens(seq)
    fresh = [n for n in (1 + int(draw.expovariate(1 / 120)) for _ in range(6000)) if n > generated]
    covered = sum(n <= bound for n in fresh) / len(fresh)
    assert covered == pytest.approx(frac, abs=0.03)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 300), min_size=20, max_size=60), generated=st.integers(0, 299))
def test_a_guess_is_a_length_that_was_seen_and_is_longer_than_what_is_there(lengths, generated):
    predictor = taught(lengths)
    seq = make_seq("a", outputs=generated, limit=1000)
    for guess in (predictor.expected_tokens(seq), predictor.bound_tokens(seq)):
        longer = [n for n in lengths if n > generated]
        assert guess in longer if longer else guess == 1000


def test_until_enough_have_finished_the_guess_is_the_limit():
    assert taught([5] * 19).expected_tokens(make_seq("a", limit=77)) == 77
    assert taught([5] * 20).expected_tokens(make_seq("a", limit=77)) == 5


def test_categories_are_kept_apart_and_cancelled_answers_left_out():
    predictor = taught([5] * 30, category="chat")
    for reason in (FinishReason.ABORT, FinishReason.ERROR):
        seq = make_seq("x", outputs=500, limit=1000, category="chat")
        seq.finish_reason = reason
        for _ in range(100):
            predictor.on_finish(seq, make_view())
    assert predictor.bound_tokens(make_seq("a", limit=77, category="chat")) == 5
    assert predictor.bound_tokens(make_seq("a", limit=77, category="code")) == 77


def test_only_the_last_window_counts():
    assert taught([300] * 50 + [5] * 30, window=30).bound_tokens(make_seq("a", limit=400)) == 5


def test_max_tokens_is_never_too_low():
    seq = make_seq("a", outputs=3, limit=9)
    assert (MaxTokens().expected_tokens(seq), MaxTokens().bound_tokens(seq)) == (9, 9)
