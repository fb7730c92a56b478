"""Words become ids in both of their spellings."""

from __future__ import annotations

from pathlib import Path

import pytest

import penstock.bundled
from penstock.core.errors import InvalidRequest
from penstock.core.request import SamplingParams
from penstock.text.bad_words import with_bad_word_ids
from penstock.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(Path(penstock.bundled.__file__).parent / "penstock-tiny")


def test_a_word_is_ruled_out_at_the_start_and_behind_a_space(tokenizer):
    asked = with_bad_word_ids(SamplingParams(bad_words=("return", "  zebra crossing")), tokenizer)
    assert asked.bad_words == ()
    spellings = ("return", "zebra crossing", " return", " zebra crossing")
    assert {tokenizer.decode(ids) for ids in asked.bad_word_ids} == set(spellings)
    assert len(asked.bad_word_ids) == 4


def test_equal_spellings_are_kept_once_and_ids_that_were_given_stay(tokenizer):
    asked = with_bad_word_ids(SamplingParams(bad_words=("x", "x", " x"), bad_word_ids=((1, 2),)), tokenizer)
    assert len(asked.bad_word_ids) == 3
    assert asked.bad_word_ids[0] == (1, 2)


def test_without_bad_words_nothing_is_made_anew(tokenizer):
    asked = SamplingParams(bad_word_ids=((1,),))
    assert with_bad_word_ids(asked, tokenizer) is asked


def test_a_word_of_too_many_tokens_is_refused_with_the_number(tokenizer):
    with pytest.raises(InvalidRequest, match=r"which is \d+ tokens; give words of 1 to 32 tokens") as wrong:
        with_bad_word_ids(SamplingParams(bad_words=("🦓" * 64,)), tokenizer)
    assert wrong.value.param == "bad_words"
