"""A maximum for softmax that is fixed beforehand: how it is found, what it is safe for, when it is given up.

softmax(x)_i = e^(x_i - phi) / sum_j e^(x_j - phi) for any phi. The largest x is the usual one, only to keep the
exponentials in range; with a phi from calibration, parts of the keys are summed without knowing of each other. Sums
are float32, so the range is wide, but not endless:

    upper bound  sums must not overflow: n keys of e^high each, and values up to e^8:  high = 80 - ln n
    lower bound  a row's largest exponential is at least e^low, and what underflows (below e^-87 each, n of them) must
                 be less than float32's rounding, 2^-24, of that:  low = ln n - 70

A row (one query of one head) whose largest score leaves these bounds is computed again with its own maximum. The
strict rule, that of the paper, does so if any score leaves them; scores far below a row's largest are harmless.

Source: FlashDecoding++ (arXiv 2311.01282, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COVERED_FRAC = 0.9999  # of what was seen must lie within the bounds
HEADROOM = 80.0
UNDERFLOW = 70.0
MOST_FALLBACK_FRAC = 1e-3
WINDOW_ROWS = 10_000
BINS, FIRST_SCORE, BIN_WIDTH = 256, -256.0, 2.0  # what lies outside counts in the outermost bins


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedMax:
    """phi, and the bounds of (score - phi), both exclusive. is_strict: for every score, not the largest of a row."""

    phi: float
    low: float
    high: float
    is_strict: bool = False

    def __post_init__(self) -> None:
        if not self.low < 0 < self.high:
            raise ValueError(f"bounds {self.low} and {self.high} of a softmax must lie on both sides of 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreHistogram:
    """Scaled scores of one layer, as many prompts gave them: every score, and the largest of every row.

    scores, peaks: counts in 256 bins of width 2 from -256 on. least_peak, greatest_peak: exact.
    """

    scores: tuple[int, ...]
    peaks: tuple[int, ...]
    least_peak: float
    greatest_peak: float

    def __post_init__(self) -> None:
        if len(self.scores) != BINS or len(self.peaks) != BINS or min(*self.scores, *self.peaks) < 0:
            raise ValueError(f"a histogram of scores has {BINS} counts")


@dataclass(frozen=True, slots=True)
class SoftmaxCalibration:
    """What calibration says of one layer. unified: None where its scores spread too far to fix a maximum."""

    unified: UnifiedMax | None
    spread: float  # of what must be covered

    @classmethod
    def fit(cls, histogram: ScoreHistogram, most_keys: int, *, is_strict: bool = False) -> SoftmaxCalibration:
        """Place phi so that 99.99 % of what the rule looks at lies in the middle of the bounds.

        most_keys: that a row ever sees. Raises ValueError for an empty histogram.
        """
        low, high = bounds(most_keys)
        least, greatest = covered(histogram.scores if is_strict else histogram.peaks)
        if not is_strict:  # the ends are known better than their bins
            least, greatest = max(least, histogram.least_peak), min(greatest, histogram.greatest_peak)
        spread = greatest - least
        phi = (least + greatest) / 2 - (low + high) / 2
        is_inside = low < least - phi and greatest - phi < high
        return cls(UnifiedMax(phi=phi, low=low, high=high, is_strict=is_strict) if is_inside else None, spread)


def bounds(most_keys: int) -> tuple[float, float]:
    """(low, high) of (score - phi) that are safe for rows of so many keys."""
    log_keys = math.log(max(1, most_keys))
    return log_keys - UNDERFLOW, HEADROOM - log_keys


def covered(counts: Sequence[int]) -> tuple[float, float]:
    """The narrowest range of bins that holds 99.99 %; endless where an outermost bin, which has no end, is needed."""
    total = sum(counts)
    if not total:
        raise ValueError("nothing was recorded: calibrate with at least one prompt")
    best = (math.inf, 0, BINS)
    start = inside = 0
    for stop in range(1, BINS + 1):
        inside += counts[stop - 1]
        while inside - counts[start] >= COVERED_FRAC * total:
            inside -= counts[start]
            start += 1
        if inside >= COVERED_FRAC * total:
            best = min(best, (stop - start, start, stop))
    _, start, stop = best
    least = -math.inf if start == 0 else FIRST_SCORE + BIN_WIDTH * start
    greatest = math.inf if stop == BINS else FIRST_SCORE + BIN_WIDTH * stop
    return least, greatest


class FallbackWatch:
    """Decides from running counts whether a layer's fallbacks cost more than its fixed maximum can gain."""

    def __init__(self) -> None:
        self._seen_fallbacks = self._seen_rows = 0

    def is_too_often(self, fallbacks: int, rows: int) -> bool:
        """Called now and then with the counts so far: more than 0.1 % of the last 10,000 rows or more?"""
        new_fallbacks, new_rows = fallbacks - self._seen_fallbacks, rows - self._seen_rows
        if new_rows < WINDOW_ROWS:
            return False
        self._seen_fallbacks, self._seen_rows = fallbacks, rows
        return new_fallbacks > MOST_FALLBACK_FRAC * new_rows
