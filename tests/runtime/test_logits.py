"""What requests ask of the logits, against the exact distribution and against transformers, knob by knob."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from random import Random
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from penstock.core.executor import ModelFacts
from penstock.core.plan import Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.ops.sample import sample
from penstock.runtime.lines import Lines, Table
from penstock.runtime.logits import HELD_BACK
from penstock.runtime.transforms import make_logits_stage
from tests.ops.test_sample import chi_square_p, expected_probs, full

from .driver import changed

CPU = torch.device("cpu")
VOCAB, STOP = 40, 7
DRAWS = 20_000
PROMPT, OUTPUTS = [1, 2, 3, 2, 30], [2, 5, 5, 9, 5]
FACTS = ModelFacts(
    name="",
    n_layers=1,
    vocab_size=VOCAB,
    max_model_tokens=512,
    stop_token_ids=frozenset({STOP}),
    states=(),
    weight_bytes=0,
)


def random_logits(seed: int) -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def telling_logits() -> Tensor:
    """The tokens that the knobs below are about are likely ones."""
    logits_V = random_logits(5) / 4
    logits_V[[2, 3, 5, 7, 9, 11, 12, 13, 30]] += 1.5
    return logits_V


def stage_of(rows: Sequence[tuple[SamplingParams, list[int], list[int]]]) -> Any:
    """A stage that knows rows 0, 1, ... of (what it asks, prompt, outputs)."""
    stage = make_logits_stage(FACTS, len(rows), CPU)
    starts = tuple(
        RowStart(
            row=row,
            tokens=array("i", prompt + outputs),
            prompt_tokens=len(prompt),
            computed_tokens=0,
            blocks=(),
            sampling=asked,
            seed=0,
        )
        for row, (asked, prompt, outputs) in enumerate(rows)
    )
    stage.follow(Plan(starts=starts), [np.array(start.tokens, np.int32) for start in starts])
    return stage


def changed_by_stage(logits_V: Tensor, asked: SamplingParams, prompt: list[int], outputs: list[int]) -> Tensor:
    logits_NV = logits_V.clone().unsqueeze(0)
    for change in stage_of([(asked, prompt, outputs)]).gather(np.array([0])):
        change.apply(logits_NV, torch.tensor([len(outputs)]))
    return logits_NV[0]


def draws(logits_V: Tensor, asked: SamplingParams) -> Tensor:
    """How often each token was drawn."""
    drawn_N = sample(
        logits_V.expand(DRAWS, -1),
        full(DRAWS, asked.temperature),
        full(DRAWS, asked.top_k, torch.int64),
        full(DRAWS, asked.top_p),
        full(DRAWS, asked.min_p),
        full(DRAWS, 99, torch.int64),
        torch.arange(DRAWS),
    )
    return torch.bincount(drawn_N, minlength=VOCAB)


KNOBS: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 1.5},
    "negative presence": {"presence_penalty": -2.0},
    "frequency": {"frequency_penalty": 0.7},
    "repetition": {"repetition_penalty": 1.8},
    "reward of repetition": {"repetition_penalty": 0.6},
    "bias": {"logit_bias": {5: -2.0, 14: 1.4, 15: 1.2, 30: -100.0}},
    "allowed": {"allowed_token_ids": (0, 2, 5, 7, 11, 12, 13, 14, 15, 20)},
    "bad words": {"bad_word_ids": ((20,), (9, 5, 11), (5, 12), (9, 5, 13), (2, 5, 2))},
    "min tokens": {"min_tokens": 6, "stop_token_ids": (12,)},
    "temperature": {"temperature": 0.5},
    "top-k": {"top_k": 9},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.1},
}
TOGETHER = [
    ("presence", "frequency"),
    ("repetition", "frequency", "presence", "temperature"),
    ("bias", "repetition", "top-k"),
    ("allowed", "bad words", "frequency", "min tokens"),
    ("allowed", "bias", "repetition", "top-p"),
    ("bad words", "min tokens", "min-p", "presence"),
    tuple(name for name in KNOBS if name not in ("negative presence", "reward of repetition")),
]


@pytest.mark.parametrize("names", [*((name,) for name in KNOBS), *TOGETHER], ids=" + ".join)
def test_draws_follow_the_exact_distribution(names):
    asked = SamplingParams(**{field: value for name in names for field, value in KNOBS[name].items()})
    logits_V = telling_logits()
    exact_V = changed(logits_V.double(), asked, PROMPT, OUTPUTS, FACTS)
    probs_V = expected_probs(
        exact_V, temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, min_p=asked.min_p
    )
    counts_V = draws(changed_by_stage(logits_V, asked, PROMPT, OUTPUTS), asked)
    assert set(counts_V.nonzero().squeeze(1).tolist()) <= set(probs_V.nonzero().squeeze(1).tolist())
    assert chi_square_p(counts_V, probs_V) > 1e-4


def test_the_knobs_of_that_test_do_change_the_distribution():
    logits_V = telling_logits()
    for name, fields in KNOBS.items():
        asked = SamplingParams(**fields)
        if name in ("temperature", "top-k", "top-p", "min-p"):
            continue
        found_V = changed_by_stage(logits_V, asked, PROMPT, OUTPUTS)
        assert chi_square_p(draws(found_V, asked), logits_V.softmax(-1)) < 1e-4, name


ids = st.integers(0, VOCAB - 1)
texts = st.lists(ids, max_size=40)
words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12)
changes = st.builds(
    SamplingParams,
    presence_penalty=st.sampled_from([0.0, 0.0, 2.0, -1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 1.3, -0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2, 0.5]),
    logit_bias=st.dictionaries(ids, st.floats(-100, 100, width=32), max_size=9),
    allowed_token_ids=st.none() | st.lists(ids, min_size=1, max_size=60).map(tuple),
    bad_word_ids=st.just(()) | words.map(tuple),
    min_tokens=st.sampled_from([0, 0, 1, 16]),
    stop_token_ids=st.lists(st.integers(0, VOCAB + 3), max_size=5).map(tuple),
    ignore_eos=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(changes, texts.filter(bool), texts), min_size=1, max_size=7), data=st.data())
def test_a_row_of_any_batch_is_changed_as_the_definitions_say_bit_by_bit(rows, data):
    """Rows that come, go and give their lines to others, in a batch of some of them in any order."""
    stage = stage_of(rows)
    ended = data.draw(st.sets(st.sampled_from(range(len(rows)))))
    again = tuple(
        RowStart(
            row=row,
            tokens=array("i", rows[other][1] + rows[other][2]),
            prompt_tokens=len(rows[other][1]),
            computed_tokens=0,
            blocks=(),
            sampling=rows[other][0],
            seed=0,
        )
        for row, other in zip(sorted(ended), sorted(ended, reverse=True), strict=True)
    )
    stage.follow(Plan(ends=tuple(ended), starts=again), [np.array(start.tokens, np.int32) for start in again])
    now = list(rows)
    for row, other in zip(sorted(ended), sorted(ended, reverse=True), strict=True):
        now[row] = rows[other]
    members = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True))
    logits_NV = torch.stack([random_logits(row) for row in members])
    expected_NV = torch.stack([changed(random_logits(row), *now[row], FACTS) for row in members])
    for change in stage.gather(np.array(members)):
        change.apply(logits_NV, torch.tensor([len(now[row][2]) for row in members]))
    torch.testing.assert_close(logits_NV, expected_NV, atol=0, rtol=0)


@settings(max_examples=60, deadline=None)
@given(asked=changes, prompt=texts.filter(bool), outputs=st.lists(ids, min_size=1, max_size=70))
def test_what_was_noted_step_by_step_is_what_a_resumed_sequence_starts_with(asked, prompt, outputs):
    stage = stage_of([(asked, prompt, [])])
    noting = stage.gather(np.array([0]))
    for index, token in enumerate(outputs):
        for change in noting:
            change.note(torch.tensor([token]), torch.tensor([index]))
    logits_NV = random_logits(1).unsqueeze(0)
    for change in noting:
        change.apply(logits_NV, torch.tensor([len(outputs)]))
    resumed_V = changed_by_stage(random_logits(1), asked, prompt, outputs)
    torch.testing.assert_close(logits_NV[0], resumed_V, atol=0, rtol=0)


def test_rows_that_ask_for_nothing_meet_no_transform_and_cost_no_memory():
    stage = stage_of([(SamplingParams(), [1], [])] * 4)
    assert stage.gather(np.arange(4)) == ()
    for transform in stage._transforms:
        tables = [value for value in vars(transform).values() if isinstance(value, Table)]
        assert tables
        assert all(table.dev.numel() == 0 for table in tables)


def test_an_allowed_id_is_drawn_though_everything_holds_it_back():
    asked = SamplingParams(
        temperature=0.0, allowed_token_ids=(STOP, 3), min_tokens=9, bad_word_ids=((3,),), repetition_penalty=50.0,
        logit_bias={3: -100.0, 4: 100.0}, frequency_penalty=2.0,
    )  # fmt: skip
    found_V = changed_by_stage(random_logits(2), asked, [3, STOP], [3, 3, STOP, STOP])
    assert int(found_V.argmax()) in (STOP, 3)
    assert found_V.isfinite().sum() == 2


# ---- transformers


def by_transformers(processor: Any, logits_V: Tensor, ids: list[int]) -> Tensor:
    return processor(torch.tensor([ids]), logits_V.clone().unsqueeze(0))[0]


def as_infinity(logits_V: Tensor) -> Tensor:
    return torch.where(logits_V < HELD_BACK / 1000, -math.inf, logits_V)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), prompt=texts.filter(bool), outputs=texts, penalty=st.floats(0.125, 8, width=32))
def test_repetition_penalty_is_that_of_transformers(seed, prompt, outputs, penalty):
    theirs_V = by_transformers(RepetitionPenaltyLogitsProcessor(penalty), random_logits(seed), prompt + outputs)
    asked = SamplingParams(repetition_penalty=penalty)
    torch.testing.assert_close(
        changed_by_stage(random_logits(seed), asked, prompt, outputs), theirs_V, atol=1e-6, rtol=1e-6
    )


@settings(max_examples=50, deadline=None)
@given(bad=words, outputs=st.lists(st.integers(0, 3), max_size=40))
def test_bad_words_are_those_of_transformers_over_the_outputs(bad, outputs):
    """Theirs look at the prompt too, so it is not shown to them."""
    processor = NoBadWordsLogitsProcessor([list(word) for word in set(bad)], eos_token_id=VOCAB - 1)
    theirs_V = by_transformers(processor, random_logits(3), outputs)
    found_V = changed_by_stage(random_logits(3), SamplingParams(bad_word_ids=tuple(bad)), [0, 1, 2, 3], outputs)
    torch.testing.assert_close(as_infinity(found_V), theirs_V, atol=0, rtol=0)


@settings(max_examples=30, deadline=None)
@given(bias=st.dictionaries(ids, st.floats(-100, 100, width=32).filter(bool), min_size=1, max_size=9))
def test_logit_bias_is_the_sequence_bias_of_transformers(bias):
    processor = SequenceBiasLogitsProcessor({(token,): amount for token, amount in bias.items()})
    theirs_V = by_transformers(processor, random_logits(4), PROMPT)
    found_V = changed_by_stage(random_logits(4), SamplingParams(logit_bias=bias), PROMPT, [])
    torch.testing.assert_close(found_V, theirs_V, atol=0, rtol=0)


@pytest.mark.parametrize("n_outputs", [0, 2, 3, 4])
def test_min_tokens_and_allowed_ids_are_those_of_transformers(n_outputs):
    outputs = OUTPUTS[:n_outputs]
    early = MinNewTokensLengthLogitsProcessor(len(PROMPT), 3, [STOP, 11])
    found_V = changed_by_stage(random_logits(6), SamplingParams(min_tokens=3, stop_token_ids=(11,)), PROMPT, outputs)
    theirs_V = by_transformers(early, random_logits(6), PROMPT + outputs)
    torch.testing.assert_close(as_infinity(found_V), theirs_V, atol=0, rtol=0)
    others = SuppressTokensLogitsProcessor([token for token in range(VOCAB) if token not in (4, 8)])
    found_V = changed_by_stage(random_logits(6), SamplingParams(allowed_token_ids=(4, 8)), PROMPT, outputs)
    torch.testing.assert_close(found_V, by_transformers(others, random_logits(6), PROMPT), atol=0, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_draws_follow_the_distribution_of_a_chain_of_transformers(seed):
    rng = Random(seed)
    asked = SamplingParams(
        logit_bias={token: rng.uniform(-3, 3) for token in rng.sample(range(VOCAB), 5)},
        bad_word_ids=((9, 5, 11), (5, 12), (20,)),
        min_tokens=6,
        repetition_penalty=rng.choice([0.7, 1.4]),
        temperature=rng.choice([0.4, 1.7]),
        top_k=rng.choice([5, 20]),
        top_p=rng.choice([0.6, 0.95]),
        min_p=rng.choice([0.01, 0.1]),
    )
    chain = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor({(token,): amount for token, amount in asked.logit_bias}),
            NoBadWordsLogitsProcessor([list(word) for word in asked.bad_word_ids], eos_token_id=VOCAB - 1),
            MinNewTokensLengthLogitsProcessor(len(PROMPT), 6, [STOP]),
            RepetitionPenaltyLogitsProcessor(asked.repetition_penalty),
            TemperatureLogitsWarper(asked.temperature),
            TopKLogitsWarper(asked.top_k),
            TopPLogitsWarper(asked.top_p),
            MinPLogitsWarper(asked.min_p),
        ]
    )
    theirs_V = by_transformers(chain, random_logits(seed), PROMPT + OUTPUTS).softmax(-1)
    counts_V = draws(changed_by_stage(random_logits(seed), asked, PROMPT, OUTPUTS), asked)
    assert chi_square_p(counts_V, theirs_V) > 1e-4


# ---- lines


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40))
def test_a_line_belongs_to_one_row_at_a_time_and_what_it_holds_stays(moves):
    lines, table = Lines(6), Table(1, torch.int64, CPU)
    holds: dict[int, int] = {}
    for stamp, (row, _) in enumerate(moves):
        if row in holds:
            lines.give_back(row)
            lines.give_back(row)  # once more is nothing
            del holds[row]
        else:
            line = lines.take([row])
            table.hold(lines.n_lines)
            table.write(torch.from_numpy(line), torch.tensor([[stamp]]))
            holds[row] = stamp
        at, found = lines.among(np.arange(6))
        assert at.tolist() == sorted(holds)
        assert table.read(torch.from_numpy(found)).squeeze(1).tolist() == [holds[r] for r in sorted(holds)]
        assert lines.n_used == len(holds)
        assert lines.n_lines <= 6
