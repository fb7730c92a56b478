"""Longest prefix match first (the cache-aware order of SGLang, arXiv 2312.07104)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from penstock.core.sequence import SequenceView
from penstock.core.view import View
from penstock.policy.options import check_option


@dataclass(frozen=True, slots=True)
class LongestPrefixMatch:
    """Whose prompt the cache holds most of, before it is evicted; after `patience_s` in the queue, by arrival.

    Looking up every waiting prompt costs time, so beyond `max_looked_up` waiting sequences the order is by arrival.
    """

    patience_s: float = 10.0
    max_looked_up: int = 128

    def __post_init__(self) -> None:
        check_option("patience_s", self.patience_s, 0 <= self.patience_s < inf, "give a number of seconds")
        check_option("max_looked_up", self.max_looked_up, self.max_looked_up >= 0, "give 0 or more")

    @property
    def is_static(self) -> bool:
        return False

    def key(self, seq: SequenceView, view: View) -> tuple[float, ...]:
        waited_too_long = view.now_s - seq.arrival_s >= self.patience_s
        if waited_too_long or len(view.waiting) > self.max_looked_up:
            return (0.0, seq.arrival_s)
        return (1.0, -view.memory.hit_tokens(seq))
