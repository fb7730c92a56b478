"""Requests, sampling parameters and objectives are valid once constructed, or one line says what to change."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from penstock.core.errors import InvalidRequest
from penstock.core.request import Objective, Request, SamplingParams

nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("n", [1, 16], [0, -1, 17]),
        ("max_tokens", [None, 1, 2**31 - 1], [0, -1, 2**31]),
        ("min_tokens", [0, 16], [-1, 17]),
        ("temperature", [0.0, 0.7, 100.0], [-0.1, 100.1, nan, inf]),
        ("top_p", [1e-9, 1.0], [0.0, 1.1, -1.0, nan]),
        ("top_k", [0, 1, 2**31 - 1], [-1, 2**31]),
        ("min_p", [0.0, 1.0], [-0.1, 1.1, nan]),
        ("seed", [None, 0, -(2**63), 2**64 - 1], [-(2**63) - 1, 2**64]),
        ("stop", [(), ("x",) * 16, ("x" * 256,)], [("x",) * 17, ("",), ("ok", ""), ("x" * 257,), ("\ud800",)]),
        ("stop_token_ids", [(), (0, 2**31 - 1)], [(-1,), (2**31,), (1,) * 1025]),
        ("logprobs", [None, 0, 20], [-1, 21]),
        ("prompt_logprobs", [None, 0, 20], [-1, 21]),
        ("presence_penalty", [0, -2.0, 2.0], [-2.1, 2.1, nan, inf]),
        ("frequency_penalty", [0, -2.0, 2.0], [-2.1, 2.1, nan, inf]),
        ("repetition_penalty", [1, 0.01, 100.0], [0, -1.0, 0.001, 101, nan, inf]),
        (
            "logit_bias",
            [(), ((0, -100.0), (5, 100.0)), tuple((t, 1.0) for t in range(1024))],
            [((-1, 1.0),), ((2**31, 1.0),), ((1, 101.0),), ((1, nan),), ((1, 1.0), (1, 2.0)), {"5": 1.0}, "x"],
        ),
        ("logit_bias", [], [tuple((t, 1.0) for t in range(1025))]),
        (
            "allowed_token_ids",
            [None, (0, 2**31 - 1), (1,) * 2**18],
            [(), (-1,), (2**31,), (1.0,), ("a",), (1,) * (2**18 + 1)],
        ),
        (
            "bad_words",
            [(), ("x",) * 256, ("x" * 256,)],
            [("x",) * 257, ("",), (" ",), ("x" * 257,), ("\ud800",), "x"],
        ),
        (
            "bad_word_ids",
            [(), ((1,), (1, 2)), ((0,) * 32,), ((1,),) * 512],
            [((),), ((0,) * 33,), ((-1,),), ((2**31,),), ((1,),) * 513],
        ),
    ],
)
def test_sampling_values_are_taken_or_refused_by_name(field, good, bad):
    for value in good:
        assert getattr(SamplingParams(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(InvalidRequest, match=field) as wrong:
            SamplingParams(**{field: value})
        assert wrong.value.param == field
        assert "\n" not in str(wrong.value)


def test_lists_mappings_and_none_are_taken_as_people_write_them():
    written = SamplingParams(
        stop=["a"], stop_token_ids=[1], logit_bias={7: 1, 3: -2.5}, allowed_token_ids=[3, 4], bad_words=["b"],
        bad_word_ids=[[1, 2]],
    )  # fmt: skip
    plain = SamplingParams(
        stop=("a",), stop_token_ids=(1,), logit_bias=((3, -2.5), (7, 1.0)), allowed_token_ids=(3, 4), bad_words=("b",),
        bad_word_ids=((1, 2),),
    )  # fmt: skip
    assert written == plain
    assert hash(written) == hash(plain)
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None, bad_words=None) == SamplingParams()


@pytest.mark.parametrize("field", ["ttft_s", "tpot_s", "deadline_s", "weight"])
def test_an_objective_is_made_of_positive_finite_numbers(field):
    assert getattr(Objective(**{field: 0.5}), field) == 0.5
    for value in (0.0, -1.0, nan, inf):
        with pytest.raises(InvalidRequest, match=field) as wrong:
            Objective(**{field: value})
        assert wrong.value.param == field


def test_objectives_default_to_no_limit():
    assert Objective() == Objective(ttft_s=None, tpot_s=None, deadline_s=None, weight=1.0)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("id", ["x", "ü\n", "x" * 256], ["", "\ud800", "x" * 257]),
        ("turn", [0, 2**31 - 1], [-1, 2**31]),
        ("seed", [0, -(2**63), 2**64 - 1], [-(2**63) - 1, 2**64]),
        ("prompt", [[0], [2**31 - 1], (1, 2), array("i", [3])], [[], [2**31], [-(2**31) - 1], ["a"], [1.5], [None]]),
        ("arrival_s", [0.0, -1.0, 1e9], [nan, inf]),
        ("priority", [0, 1 - 2**31, 2**31 - 1], [2**31, -(2**31), 2**70]),
        ("client", ["", "ü"], ["\udfff", "x" * 257]),
        ("program", [None, "p"], ["\ud800"]),
        ("category", ["", "chat"], ["\ud800"]),
        ("cache_salt", ["", "x" * 128, "ü"], ["x" * 129, "a@b", "a/b", "a\\b", "a\0b", "\ud800"]),
    ],
)
def test_request_values_are_taken_or_refused_by_name(field, good, bad):
    request = Request(id="r", prompt=[1])
    for value in good:
        taken = getattr(replace(request, **{field: value}), field)
        assert list(taken) == list(value) if field == "prompt" else taken == value
    for value in bad:
        with pytest.raises(InvalidRequest, match=field) as wrong:
            replace(request, **{field: value})
        assert wrong.value.param == field
        assert str(wrong.value).isprintable(), "an error is one line, whatever the client sent"


def test_a_prompt_becomes_an_array_and_an_array_is_not_copied():
    assert Request(id="r", prompt=[1, 2]).prompt == array("i", [1, 2])
    ids = array("i", [1, 2])
    assert Request(id="r", prompt=ids).prompt is ids


def test_a_prompt_of_another_array_type_becomes_one_of_ids():
    assert Request(id="r", prompt=array("q", [1, 2])).prompt.typecode == "i"
    with pytest.raises(InvalidRequest, match="prompt"):
        Request(id="r", prompt=array("d", [1.0]))


def test_a_request_cannot_be_changed():
    with pytest.raises(AttributeError):
        Request(id="r", prompt=[1]).id = "other"
