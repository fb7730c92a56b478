"""Prompts made from lengths: the same everywhere, shared where the trace says so and nowhere else."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import calm

from penstock.workload.prompts import PromptStream
from penstock.workload.trace import TraceError, TraceRequest


def asked(input_tokens: int, **changes: object) -> TraceRequest:
    return TraceRequest(arrival_s=0, input_tokens=input_tokens, output_tokens=1, **changes)  # type: ignore[arg-type]


@given(short=st.integers(1, 300), more=st.integers(0, 300))
@calm
def test_a_turn_begins_with_the_turn_before(short, more):
    prompts = PromptStream(seed=1)
    first, second = (prompts.ids(index, asked(n, session="s")) for index, n in enumerate((short, short + more)))
    assert len(second) == short + more
    assert second[:short] == first


@given(n_tokens=st.integers(1, 200), start=st.integers(0, 50), size=st.integers(1, 1000))
@calm
def test_ids_stay_in_their_range(n_tokens, start, size):
    ids = PromptStream(vocab_start=start, vocab_stop=start + size).ids(0, asked(n_tokens))
    assert len(ids) == n_tokens
    assert start <= min(ids) <= max(ids) < start + size


def test_equal_hashes_are_equal_blocks_and_the_last_block_is_cut():
    prompts = PromptStream(block_tokens=16)
    one, two = (prompts.ids(0, asked(40, block_hashes=hashes)) for hashes in ((1, 2, 3), (1, 2, 4)))
    assert len(one) == len(two) == 40
    assert one[:32] == two[:32]
    assert one[32:] != two[32:]
    assert len(prompts.ids(0, asked(100, block_hashes=(1, 2)))) == 100


def test_requests_without_session_or_hashes_share_nothing():
    prompts = PromptStream()
    assert prompts.ids(0, asked(30))[:8] != prompts.ids(1, asked(30))[:8]


def test_the_seed_decides_every_token():
    # a golden value: prompts must not change between releases, or results are not comparable
    assert PromptStream(seed=0).ids(0, asked(6)).tolist() == [24, 199, 253, 132, 221, 169]
    assert PromptStream(seed=1).ids(0, asked(6)) != PromptStream(seed=0).ids(0, asked(6))


def test_a_recorded_prompt_is_sent_as_it_is():
    assert PromptStream().prompt(0, asked(2, prompt_text="hello")) == "hello"
    assert PromptStream().prompt(0, asked(2, prompt_ids=(7, 8))) == array("i", [7, 8])


def test_an_empty_prompt_is_sent_as_one_token():
    assert len(PromptStream().ids(0, asked(0))) == 1


def test_an_empty_range_of_ids_is_refused():
    with pytest.raises(TraceError, match=r"range of token ids \[5, 5\)"):
        PromptStream(vocab_start=5, vocab_stop=5)
