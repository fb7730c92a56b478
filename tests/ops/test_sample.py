from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.ops.sample import logprobs, sample
from penstock.ops.sample.reference import GOLDEN, _mix, uniform
from penstock.ops.sample.reference import draw as draw_by_weight

from .rows import on_cpu

SAMPLERS = on_cpu(sample)
each_sampler = pytest.mark.parametrize("draw", SAMPLERS.values(), ids=SAMPLERS.keys())
DRAWS = 20_000


def full(rows: int, value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((rows,), value, dtype=dtype)


def chi_square_p(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Upper tail of the chi-square statistic; tokens of little mass are pooled."""
    expected = probs.double() * counts.sum()
    is_rare = expected < 5
    if is_rare.any():
        expected = torch.cat((expected[~is_rare], expected[is_rare].sum().reshape(1)))
        counts = torch.cat((counts[~is_rare], counts[is_rare].sum().reshape(1)))
    is_possible = expected > 0
    assert counts[~is_possible].sum() == 0
    statistic = ((counts - expected)[is_possible] ** 2 / expected[is_possible]).sum()
    freedom = torch.tensor((int(is_possible.sum()) - 1) / 2).double()
    return float(torch.special.gammaincc(freedom, statistic / 2))


def expected_probs(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The definition, one token after the other, on one row."""
    probs = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(probs)), key=lambda token: (-logits[token].item(), token))
    if top_k:
        order = order[:top_k]
    left = sum(probs[token].item() for token in order)
    kept, mass = [], 0.0
    for token in order:
        if mass >= top_p * left and kept:
            break
        kept.append(token)
        mass += probs[token].item()
    kept = [token for token in kept if probs[token] >= min_p * probs.max()]
    out = torch.zeros_like(probs)
    out[kept] = probs[kept]
    return out / out.sum()


@each_sampler
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(draw, options):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 2
    rows = logits.expand(DRAWS, -1)
    drawn = draw(
        rows,
        full(DRAWS, options.get("temperature", 1.0)),
        full(DRAWS, options["top_k"], torch.int64) if "top_k" in options else None,
        full(DRAWS, options["top_p"]) if "top_p" in options else None,
        full(DRAWS, options["min_p"]) if "min_p" in options else None,
        full(DRAWS, 1234, torch.int64),
        torch.arange(DRAWS),
    )
    counts = torch.bincount(drawn, minlength=50)
    probs = expected_probs(logits, **options)
    assert set(counts.nonzero().squeeze(1).tolist()) <= set(probs.nonzero().squeeze(1).tolist())
    assert chi_square_p(counts, probs) > 1e-4


def test_the_hash_is_splitmix64():
    """The published first outputs of the stream that starts at 1234567."""
    states = 1234567 + GOLDEN * torch.arange(1, 4)
    outputs = [int(bits) % 2**64 for bits in _mix(states)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("vary", ["seed", "index"])
def test_the_uniform_numbers_are_uniform(vary):
    counter, fixed = torch.arange(100_000), full(100_000, 42, torch.int64)
    numbers = uniform(counter, fixed) if vary == "seed" else uniform(fixed, counter)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    cells = torch.bincount((numbers * 256).long(), minlength=256)
    assert chi_square_p(cells, full(256, 1 / 256)) > 1e-4
    pairs = torch.bincount((numbers[:-1] * 16).long() * 16 + (numbers[1:] * 16).long(), minlength=256)
    assert chi_square_p(pairs, full(256, 1 / 256)) > 1e-4


def test_the_draw_takes_each_token_by_its_weight_and_never_one_without():
    weights = torch.tensor([[0, 1, 0, 3, 0]]).expand(DRAWS, -1)
    drawn = draw_by_weight(weights, full(DRAWS, 5, torch.int64), torch.arange(DRAWS))
    assert chi_square_p(torch.bincount(drawn, minlength=5), torch.tensor([0, 0.25, 0, 0.75, 0])) > 1e-4


@st.composite
def batches(draw):
    """Rows of every kind side by side; (logits, temperature, top_k, top_p, min_p, seed, index)."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, vocab = draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 63, 64, 65, 300]))
    logits = torch.randn(rows, vocab, generator=generator) * 4
    if draw(st.booleans()):
        logits = logits.round()  # many equals
    kinds = st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.7, 1.0, 5.0]),
            st.sampled_from([0, 1, 2, 40, 1000]),
            st.sampled_from([1.0, 0.9, 0.3, 1e-6]),
            st.sampled_from([0.0, 0.1, 1.0]),
            st.integers(-(2**63), 2**63 - 1),
            st.integers(0, 2**31),
        ),
        min_size=rows,
        max_size=rows,
    )
    temperature, top_k, top_p, min_p, seed, index = zip(*draw(kinds), strict=True)
    floats = (torch.tensor(column) for column in (temperature, top_p, min_p))
    temperature, top_p, min_p = floats
    return logits, temperature, torch.tensor(top_k), top_p, min_p, torch.tensor(seed), torch.tensor(index)


@each_sampler
@given(batch=batches(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_draws_the_same_token_in_any_company(draw, batch, data):
    together = draw(*batch)
    order = data.draw(st.permutations(range(len(together))))
    part = order[: data.draw(st.integers(1, len(order)))]
    torch.testing.assert_close(draw(*(column[part] for column in batch)), together[part])


@each_sampler
@given(batch=batches())
@settings(max_examples=60, deadline=None)
def test_a_filter_that_nobody_uses_changes_no_token(draw, batch):
    logits, temperature, _, _, _, seed, index = batch
    rows = len(logits)
    off = (torch.zeros(rows, dtype=torch.int64), torch.ones(rows), torch.zeros(rows))
    expected = draw(logits, temperature, None, None, None, seed, index)
    torch.testing.assert_close(draw(logits, temperature, *off, seed, index), expected)


@each_sampler
@given(batch=batches())
@settings(max_examples=60, deadline=None)
def test_only_tokens_that_every_filter_keeps_are_drawn(draw, batch):
    drawn = draw(*batch).tolist()
    logits, temperature, top_k, top_p, min_p, _, _ = (column.tolist() for column in batch)
    for row, token in enumerate(drawn):
        if temperature[row] == 0:
            assert token == logits[row].index(max(logits[row]))
            continue
        probs = expected_probs(  # float32 against float64: a hair of tolerance at the edges
            batch[0][row],
            temperature=temperature[row],
            top_k=top_k[row],
            top_p=min(1.0, top_p[row] + 1e-6),
            min_p=min_p[row] * (1 - 1e-5),
        )
        assert probs[token] > 0


@each_sampler
def test_among_equals_the_first_is_greedy_and_top_k_1_is_greedy(draw):
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0]]).expand(200, -1)
    seed, index = full(200, 7, torch.int64), torch.arange(200)
    assert (draw(logits, full(200, 0.0), None, None, None, seed, index) == 1).all()
    assert (draw(logits, full(200, 1.0), full(200, 1, torch.int64), None, None, seed, index) == 1).all()
    two = draw(logits, full(200, 1.0), full(200, 2, torch.int64), None, None, seed, index)
    assert set(two.tolist()) == {1, 2}


@each_sampler
def test_a_tiny_temperature_is_nearly_greedy_and_finite(draw):
    logits = torch.tensor([[50.0, 49.0, -80.0]])
    assert draw(logits, full(1, 1e-30), None, None, None, full(1, 1, torch.int64), full(1, 0, torch.int64)) == 0


@each_sampler
def test_masked_tokens_are_never_drawn(draw):
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]]).expand(500, -1)
    drawn = draw(logits, full(500, 100.0), None, None, None, full(500, 1, torch.int64), torch.arange(500))
    assert set(drawn.tolist()) == {0, 2}


@each_sampler
def test_a_row_of_nan_yields_a_token_and_leaves_its_neighbours_alone(draw):
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    args = (full(3, 1.0), full(3, 5, torch.int64), full(3, 0.9), full(3, 0.1), torch.arange(3), torch.arange(3))
    expected = draw(logits, *args)
    logits[1] = torch.nan
    drawn = draw(logits, *args)
    assert drawn[[0, 2]].tolist() == expected[[0, 2]].tolist()
    assert 0 <= drawn[1] < 40


def test_logprobs_are_those_of_the_model_before_any_filter():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 9.0]])
    found = logprobs(logits, torch.tensor([2, 3]), 2)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(found.chosen_N, expected[[0, 1], [2, 3]])
    assert found.rank_N.tolist() == [3, 1]  # two tokens are more likely than token 2
    torch.testing.assert_close(found.top_NK, expected.topk(2).values)
    torch.testing.assert_close(found.top_NK, expected.gather(1, found.top_ids_NK))
    assert logprobs(logits, torch.tensor([0, 0]), 0).top_ids_NK.shape == (2, 0)
