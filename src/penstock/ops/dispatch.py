"""Which implementation of a linear layer serves how many rows: decided from timings, without torch.

A device has three implementations, in the order in which they pay as rows grow (`tuned.py` names them). For a shape of
weights, two numbers say all: from how many rows on the second is used, and from how many the third. They are measured
once (`penstock profile kernels`); looking one up is two comparisons.

Source: the heuristic dataflow of FlashDecoding++ (arXiv 2311.01282, section 5). It takes the first number of rows at
which the next implementation is faster; here the two numbers are those that lose least over all rows together, and a
switch must bring 3 %. On curves that cross once the two agree. On a CPU they do not always (bfloat16, 4096 x 256: the
third was fastest at 1 row and from 24 on, and losing between), and the first crossing lost 20 % to never switching.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_GAIN_FRAC = 0.03


@dataclass(frozen=True, slots=True)
class Cuts:
    """The second implementation serves `second_from` rows and more, the third `third_from` and more; None: never.

    Where the second never pays and the third does, both are the same number.
    """

    second_from: int | None
    third_from: int | None

    def __post_init__(self) -> None:
        second, third = self.second_from, self.third_from
        if third is not None and (second is None or not 1 <= second <= third):
            raise ValueError(f"the third implementation cannot begin at {third} rows, the second at {second}")
        if second is not None and second < 1:
            raise ValueError(f"the second implementation cannot begin at {second} rows")

    def pick(self, rows: int) -> int:
        """0, 1 or 2: the place of the implementation."""
        if self.third_from is not None and rows >= self.third_from:
            return 2
        return int(self.second_from is not None and rows >= self.second_from)


ALWAYS = (Cuts(None, None), Cuts(1, None), Cuts(1, 1))  # one implementation for every number of rows


@dataclass(frozen=True, slots=True)
class Timing:
    """seconds_by: for each of the three, some measurements of one call with so many rows; none if it does not serve it.

    The measurements stand for a call in the middle of others: what it reads is as cold as it would be there.
    """

    rows: int
    seconds_by: tuple[Sequence[float], Sequence[float], Sequence[float]]

    @property
    def medians(self) -> tuple[float, ...]:
        """Of each implementation, infinite for one that does not serve so many rows."""
        return tuple(statistics.median(seconds) if seconds else float("inf") for seconds in self.seconds_by)


def choose_cuts(timings: Sequence[Timing]) -> Cuts:
    """Where to switch, from timings by ascending rows: the least loss against the best of each number of rows.

    Losses are relative, so that no number of rows counts more than another. A later implementation is taken for what
    it takes and 3 % for each step to it, so that noise does not switch. Equal choices: the one that switches later.
    Raises ValueError if there are no timings, if they do not ascend, or if nothing serves some number of rows.
    """
    rows = [timing.rows for timing in timings]
    if not rows or rows != sorted(set(rows)):
        raise ValueError(f"timings must be of ascending numbers of rows, not of {rows}")
    if any(math.isinf(min(timing.medians)) for timing in timings):
        raise ValueError("some number of rows was measured with no implementation")
    losses = [_losses(timing) for timing in timings]
    n = len(rows)
    choices = ((second, third) for third in range(n, -1, -1) for second in range(third, -1, -1))
    second, third = min(choices, key=lambda cut: _loss(losses, *cut))
    return Cuts(rows[second] if second < n else None, rows[third] if third < n else None)


def _losses(timing: Timing) -> tuple[float, ...]:
    """Of each implementation: by how much it is slower than the best, as a logarithm."""
    best = min(timing.medians)
    step = -math.log(1 - LEAST_GAIN_FRAC)
    return tuple(math.log(seconds / best) + place * step for place, seconds in enumerate(timing.medians))


def _loss(losses: Sequence[tuple[float, ...]], second: int, third: int) -> float:
    return math.fsum(by[(at >= second) + (at >= third)] for at, by in enumerate(losses))


def mean_loss(timings: Sequence[Timing], cuts: Cuts) -> float:
    """How many times the best time of each number of rows these cuts take, on (geometric) average."""
    ratios = (timing.medians[cuts.pick(timing.rows)] / min(timing.medians) for timing in timings)
    return math.exp(math.fsum(map(math.log, ratios)) / len(timings))
