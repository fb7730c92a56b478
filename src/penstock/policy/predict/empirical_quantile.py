"""Answers are as long as those that finished lately."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field

from penstock.core.sequence import FinishReason, SequenceView
from penstock.core.view import Observer, View
from penstock.policy.options import check_option


@dataclass(slots=True)
class _Recent:
    """Output lengths of the last finished sequences, in order of time and of size."""

    by_time: deque[int] = field(default_factory=deque)
    by_size: list[int] = field(default_factory=list)


@dataclass
class EmpiricalQuantile(Observer):
    """Quantiles of the lengths of the last `window` finished sequences of the same category, given that they are
    longer than what the sequence has put out already (the conditional distribution of Past-Future, arXiv 2507.10150).

    Cancelled sequences are left out: they say nothing of how long the answer would have been. Until `min_samples`
    have finished, and beyond the longest seen, the prediction is the limit.
    """

    window: int = 200
    expected_frac: float = 0.5
    bound_frac: float = 0.95
    min_samples: int = 20

    def __post_init__(self) -> None:
        check_option("window", self.window, self.window >= 1, "give 1 or more")
        check_option("min_samples", self.min_samples, self.min_samples >= 1, "give 1 or more")
        ok = 0 <= self.expected_frac <= self.bound_frac
        check_option("expected_frac", self.expected_frac, ok, f"give 0 to bound_frac, which is {self.bound_frac}")
        check_option("bound_frac", self.bound_frac, self.bound_frac <= 1, "give at most 1")
        self._recent: dict[str, _Recent] = {}

    def expected_tokens(self, seq: SequenceView) -> int:
        return self._quantile(seq, self.expected_frac)

    def bound_tokens(self, seq: SequenceView) -> int:
        return self._quantile(seq, self.bound_frac)

    def on_finish(self, seq: SequenceView, view: View) -> None:
        if seq.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        recent = self._recent.setdefault(seq.request.category, _Recent())
        recent.by_time.append(seq.output_tokens)
        insort(recent.by_size, seq.output_tokens)
        if len(recent.by_time) > self.window:
            recent.by_size.remove(recent.by_time.popleft())

    def _quantile(self, seq: SequenceView, frac: float) -> int:
        recent = self._recent.get(seq.request.category)
        if recent is None or len(recent.by_size) < self.min_samples:
            return seq.output_limit_tokens
        longer = bisect_right(recent.by_size, seq.output_tokens)
        n_longer = len(recent.by_size) - longer
        if n_longer == 0:
            return seq.output_limit_tokens
        at = longer + min(n_longer - 1, int(frac * n_longer))
        return min(seq.output_limit_tokens, recent.by_size[at])
