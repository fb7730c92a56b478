"""Prompt and answer lengths: empirical quantile tables, and answers that depend on their prompt.

No parametric law fits the measured lengths, so a table of (probability, tokens) is sampled, log-linear between its
points. Prompt and answer are not independent: the mean answer falls from about 265 tokens at a prompt of 30 to 155 at
120 to 300 and rises to 460 at 2000, and its relative spread shrinks (BurstGPT, arXiv 2401.17644). The model keeps both
the answers' own table *exactly* and that curve closely: a draw is moved to the curve, its spread narrowed, and the
result is mapped through its own distribution back onto the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.workload.trace import TraceError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
SPREAD_INPUTS = (200, 2000)  # prompt tokens at which spread_short and spread_long hold


@dataclass(frozen=True)
class QuantileTable:
    """Points (cumulative probability, tokens), rising, from 0 to 1."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        probabilities, tokens = zip(*self.points, strict=True)
        if probabilities[0] != 0 or probabilities[-1] != 1 or list(probabilities) != sorted(set(probabilities)):
            raise TraceError(f"a quantile table rises strictly from probability 0 to 1, this one has {probabilities}")
        if tokens[0] < 1 or list(tokens) != sorted(tokens):
            raise TraceError(f"a quantile table's tokens are 1 or more and never fall, this one has {tokens}")

    def quantile(self, probability: Floats) -> Floats:
        probabilities, tokens = np.array(self.points).T
        values: Floats = np.exp(np.interp(probability, probabilities, np.log(tokens)))
        return values

    @cached_property
    def mean(self) -> float:
        return float(self.quantile(_midpoints(20_000)).mean())

    @classmethod
    def of(cls, tokens: Counts, n_points: int = 33) -> QuantileTable:
        """The table of measured lengths; zeros (failed requests) are left out."""
        counted = np.maximum(tokens[tokens > 0], 1)
        if counted.size == 0:
            raise TraceError("there is no length above 0 to make a quantile table from")
        probabilities = np.unique(np.concatenate([np.linspace(0, 1, n_points), [0.95, 0.98, 0.99, 0.999]]))
        values = np.quantile(counted, probabilities)
        return cls(tuple((round(float(p), 6), float(v)) for p, v in zip(probabilities, values, strict=True)))


@dataclass(frozen=True)
class LengthModel:
    """Draws (prompt, answer) lengths.

    mean_output_by_input: points (prompt tokens, mean answer tokens), linear between, flat outside; empty makes answers
    independent. spread_short, spread_long: exponents of an answer's relative spread at 200 and at 2000 prompt tokens.
    tail_frac of prompts are drawn log-uniformly from [32768, 126000) instead. scale multiplies all lengths, for small
    models; the caps hold after it.
    """

    inputs: QuantileTable
    outputs: QuantileTable
    mean_output_by_input: tuple[tuple[float, float], ...] = ()
    spread_short: float = 1.1
    spread_long: float = 0.45
    tail_frac: float = 0.0
    scale: float = 1.0
    max_input_tokens: int = 131_072
    max_output_tokens: int = 8192

    def __post_init__(self) -> None:
        if not 0 <= self.tail_frac <= 1:
            raise TraceError(f"tail_frac is {self.tail_frac}: give a share from 0 to 1")
        if not 0 < self.scale < float("inf") or min(self.max_input_tokens, self.max_output_tokens) < 1:
            raise TraceError("scale must be positive, max_input_tokens and max_output_tokens 1 or more")

    def draw_inputs(self, rng: np.random.Generator, count: int) -> Floats:
        """Unscaled prompt lengths."""
        body, tail, is_tail = rng.random((count, 3)).T  # a row per request: the first ones never depend on the count
        long_tokens = 32_768 * (126_000 / 32_768) ** tail
        return np.where(is_tail < self.tail_frac, long_tokens, self.inputs.quantile(body))

    def draw_outputs(self, rng: np.random.Generator, inputs: Floats) -> Floats:
        """Unscaled answer lengths, given the unscaled prompts."""
        probability = rng.random(inputs.size)
        if not self.mean_output_by_input:
            return self.outputs.quantile(probability)
        return self.outputs.quantile(self._rank(self._moved(inputs, self.outputs.quantile(probability))))

    def tokens(self, lengths: Floats, cap: int) -> Counts:
        return np.clip(np.rint(lengths * self.scale), 1, cap).astype(np.int64)

    def _moved(self, inputs: Floats, drawn: Floats) -> Floats:
        """A draw from the table moved to the mean of its prompt, its spread narrowed."""
        spread = self._spread(inputs)
        at, mean_tokens = np.array(self.mean_output_by_input).T
        shape_mean = np.interp(spread, *self._shape_means)
        moved: Floats = np.interp(inputs, at, mean_tokens) * (drawn / self.outputs.mean) ** spread / shape_mean
        return moved

    def _spread(self, inputs: Floats) -> Floats:
        return np.interp(np.log(inputs), np.log(SPREAD_INPUTS), (self.spread_short, self.spread_long))

    @cached_property
    def _shape_means(self) -> tuple[Floats, Floats]:
        """Mean of (draw / mean) ** spread, by spread: divides out, so that narrowing leaves the mean."""
        low, high = sorted((self.spread_short, self.spread_long))
        spreads = np.linspace(low, high, 33)
        shape = self.outputs.quantile(_midpoints(4000)) / self.outputs.mean
        return spreads, np.array([(shape**spread).mean() for spread in spreads])

    def _rank(self, moved: Floats) -> Floats:
        return np.interp(moved, self._moved_quantiles, np.linspace(0, 1, self._moved_quantiles.size))

    @cached_property
    def _moved_quantiles(self) -> Floats:
        """Distribution of moved draws over all prompts and draws, by quadrature."""
        inputs, drawn = self.inputs.quantile(_midpoints(400)), self.outputs.quantile(_midpoints(800))
        moved = self._moved(np.repeat(inputs, drawn.size), np.tile(drawn, inputs.size))
        return np.quantile(moved, np.linspace(0, 1, 4001))


def _midpoints(count: int) -> Floats:
    return (np.arange(count) + 0.5) / count
