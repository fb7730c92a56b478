"""Softmax against a maximum that was fixed beforehand: sums of parts, bounds, and what leaves them."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.ops.check import make_batch
from penstock.ops.lazy import has_triton
from penstock.ops.paged_attention import reference as paged
from penstock.ops.unified_attention import unified_attention
from penstock.ops.unified_attention.fallbacks import Fallbacks
from penstock.ops.unified_attention.reference import combine, partials
from penstock.ops.unified_max import (
    BIN_WIDTH,
    BINS,
    FIRST_SCORE,
    FallbackWatch,
    ScoreHistogram,
    SoftmaxCalibration,
    UnifiedMax,
    bounds,
    covered,
)

SAFE = UnifiedMax(phi=2.0, low=-60.0, high=66.0)
STRICT = UnifiedMax(phi=0.0, low=-5.0, high=5.0, is_strict=True)
RUNS = {
    name: run
    for name, run in unified_attention.implementations.items()
    if name != "cuda" or (has_triton() and not torch.cuda.is_available())
}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says what a GPU does not: exp overflows
every_implementation = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(scores_HL, v_LKD):
    weights_KGL = scores_HL.softmax(1).view(v_LKD.shape[1], -1, v_LKD.shape[0])
    return torch.einsum("kgl,lkd->kgd", weights_KGL, v_LKD).flatten(0, 1)


@pytest.mark.parametrize("part_keys", [1, 7, 64, 1000])
def test_parts_add_up_to_the_softmax_in_any_number_and_order(part_keys):
    scores, v = 4 * normal(6, 300), normal(300, 2, 32, seed=1)
    num, den, flags = partials(scores, v, SAFE, part_keys)
    found, lse, is_bad = combine(num, den, flags, SAFE)
    assert not is_bad.any()
    torch.testing.assert_close(found, softmax(scores, v), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(lse, scores.logsumexp(1), atol=1e-6, rtol=1e-6)
    order = list(range(len(num)))
    random.Random(3).shuffle(order)
    shuffled = partials(scores[:, :], v, SAFE, part_keys)
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__))
    for part, again in zip((num, den, flags), shuffled, strict=True):  # arrive in any order, be added in a fixed one
        assert torch.equal(again[order][back].sum(0), part.sum(0))


def test_the_result_does_not_depend_on_phi_within_the_bounds():
    scores, v = 4 * normal(6, 300), normal(300, 2, 32, seed=1)
    found = [
        combine(*partials(scores, v, unified), unified)[0]
        for unified in (SAFE, UnifiedMax(phi=7.0, low=-60.0, high=66.0))
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("row", "rule", "strict"),
    [
        ([0.0, 1.0, 80.0], True, True),  # one huge score
        ([-70.0, -65.0, -90.0], True, True),  # all tiny
        ([-90.0, 3.0], False, True),  # one tiny: harmless
        ([1.0], False, False),  # one key
        ([1.0, -math.inf], False, False),  # a hidden key is no score
        ([-math.inf, -math.inf], False, False),  # none is seen
        ([], False, False),
        ([1.0, math.nan], True, True),
    ],
    ids=["huge", "tiny", "one tiny", "one key", "hidden", "all hidden", "empty", "nan"],
)
def test_a_row_is_bad_by_its_largest_score_or_strictly_by_any(row, rule, strict):
    scores = torch.stack((torch.tensor(row), torch.zeros(len(row)))) if row else torch.zeros(2, 0)
    v = normal(len(row), 2, 8)
    for is_strict, expected in ((False, rule), (True, strict)):
        unified = UnifiedMax(phi=0.0, low=-60.0, high=66.0, is_strict=is_strict)
        for part_keys in (1, 2, 64):
            is_bad = combine(*partials(scores, v, unified, part_keys), unified)[2]
            assert is_bad.tolist() == [expected, False]


# --- the op: exactly the bad rows are computed again, and every result is that of paged attention ---
def batch_of(kv_lens, heads=4, kv_heads=2, head_dim=32, scale=1.0):
    generator = torch.Generator().manual_seed(5)
    batch, n_blocks = make_batch([1] * len(kv_lens), kv_lens, 16, generator=generator)
    q = scale * torch.randn(len(kv_lens), heads, head_dim, generator=generator)
    return q, torch.randn(2, n_blocks, 16, kv_heads, head_dim, generator=generator), batch, head_dim**-0.5


@every_implementation
@pytest.mark.parametrize("bad", [(), ((1, 2),), ((0, 0), (2, 3)), "all"], ids=str)
def test_exactly_the_rows_that_leave_the_bounds_are_computed_again(run, bad):
    args = batch_of((200, 300, 130))
    cells = list(itertools.product(range(3), range(4))) if bad == "all" else bad
    for token, head in cells:
        args[0][token, head] *= 200  # its largest score is far above the upper bound
    fallbacks = Fallbacks.on("cpu")
    out, lse = run(*args, UnifiedMax(phi=0.0, low=-60.0, high=30.0), fallbacks)
    expected_out, expected_lse = paged.paged_attention(*args)
    assert fallbacks.counts_2.tolist() == [len(cells), 12]
    torch.testing.assert_close(out, expected_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=1e-5)


@every_implementation
def test_rows_far_below_phi_are_computed_again_and_hidden_or_missing_keys_are_not_bad(run):
    args = batch_of((200, 0, 17))
    fallbacks = Fallbacks.on("cpu")
    out, lse = run(*args, UnifiedMax(phi=500.0, low=-60.0, high=30.0), fallbacks)
    assert fallbacks.counts_2.tolist() == [8, 8]
    torch.testing.assert_close(out, paged.paged_attention(*args)[0], atol=1e-5, rtol=1e-5)
    assert lse[1].tolist() == [-math.inf] * 4
    fallbacks = Fallbacks.on("cpu")
    run(*args, SAFE, fallbacks, 16)
    assert fallbacks.counts_2[0] == 0


@every_implementation
def test_the_strict_rule_looks_at_every_score(run):
    args = batch_of((200, 300), scale=8.0)
    counts = []
    for is_strict in (False, True):
        fallbacks = Fallbacks.on("cpu")
        unified = UnifiedMax(phi=0.0, low=-5.0, high=66.0, is_strict=is_strict)
        out, _ = run(*args, unified, fallbacks)
        torch.testing.assert_close(out, paged.paged_attention(*args)[0], atol=1e-5, rtol=1e-5)
        counts.append(int(fallbacks.counts_2[0]))
    assert counts == [0, 8]


def test_longer_segments_are_not_its_business():
    batch, n_blocks = make_batch([2], [20], 16, generator=torch.Generator().manual_seed(0))
    q, kv = normal(2, 4, 32), normal(2, n_blocks, 16, 2, 32)
    for run in (RUNS["reference"], unified_attention):
        with pytest.raises(ValueError, match="more than one token"):
            run(q, kv, batch, 1.0, SAFE, Fallbacks.on("cpu"))


# --- calibration ---
def histogram_of(scores, peaks):
    def counts(values):
        found = [0] * BINS
        for value in values:
            found[min(BINS - 1, max(0, int((value - FIRST_SCORE) // BIN_WIDTH)))] += 1
        return tuple(found)

    return ScoreHistogram(scores=counts(scores), peaks=counts(peaks), least_peak=min(peaks), greatest_peak=max(peaks))


@given(st.floats(-100, 100), st.floats(0, 30), st.integers(1, 2**20), st.booleans(), st.integers(0, 2**31))
def test_what_was_seen_lies_within_bounds_that_cannot_overflow(middle, spread, most_keys, is_strict, seed):
    drawn = random.Random(seed)
    scores = [drawn.uniform(middle - spread, middle + spread) for _ in range(500)]
    peaks = [max(scores[at : at + 10]) for at in range(0, 500, 10)]
    found = SoftmaxCalibration.fit(histogram_of(scores, peaks), most_keys, is_strict=is_strict).unified
    assert found is not None
    judged = scores if is_strict else peaks
    inside = [found.low < value - found.phi < found.high for value in judged]
    assert sum(inside) >= 0.9999 * len(judged)
    assert found.high <= 80 - math.log(most_keys)
    assert most_keys * math.exp(found.high) * math.exp(8) < torch.finfo(torch.float32).max
    assert most_keys * math.exp(-87) < 2**-23 * math.exp(found.low)


def test_scores_that_spread_too_far_switch_the_layer_off():
    wide = histogram_of([-100.0, 100.0] * 50, [-100.0, 100.0] * 50)
    found = SoftmaxCalibration.fit(wide, 4096)
    assert found.unified is None
    assert found.spread == pytest.approx(200.0)
    beyond = histogram_of([1e4] * 50, [1e4] * 50)  # the ends of the peaks are exact, those of the scores are not
    assert SoftmaxCalibration.fit(beyond, 4096).unified is not None
    assert SoftmaxCalibration.fit(beyond, 4096, is_strict=True).unified is None
    low, high = bounds(4096)
    assert found.spread > high - low


def test_one_score_in_many_does_not_widen_the_range():
    counts = [0] * BINS
    counts[100], counts[120], counts[250] = 60_000, 60_000, 5
    assert covered(counts) == (FIRST_SCORE + 100 * BIN_WIDTH, FIRST_SCORE + 121 * BIN_WIDTH)
    with pytest.raises(ValueError, match="nothing was recorded"):
        covered([0] * BINS)


def test_a_histogram_of_another_size_is_refused():
    with pytest.raises(ValueError, match="256 counts"):
        ScoreHistogram(scores=(1,), peaks=(1,) * BINS, least_peak=0.0, greatest_peak=0.0)
    with pytest.raises(ValueError, match="both sides of 0"):
        UnifiedMax(phi=0.0, low=1.0, high=2.0)


# --- giving up ---
def test_a_layer_is_given_up_when_a_window_has_too_many_fallbacks():
    watch = FallbackWatch()
    assert not watch.is_too_often(100, 9_999)  # too few rows to say
    assert watch.is_too_often(100, 10_000)
    watch = FallbackWatch()
    assert not watch.is_too_often(10, 10_000)  # exactly 0.1 %
    assert not watch.is_too_often(20, 20_000)
    assert watch.is_too_often(31, 30_000)
