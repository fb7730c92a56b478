"""Shortest prefill first, with ageing."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from penstock.core.sequence import SequenceView
from penstock.core.view import View
from penstock.policy.options import check_option


@dataclass(frozen=True, slots=True)
class ShortestPrefill:
    """Fewest tokens to compute first (prefix hits do not count); waiting a second is worth `ageing_tokens_per_s`.

    Ageing keeps long prompts from starving; 15 tokens a second is what Nexus uses (arXiv 2507.06608).
    """

    ageing_tokens_per_s: float = 15.0

    def __post_init__(self) -> None:
        ok = 0 < self.ageing_tokens_per_s < inf
        check_option("ageing_tokens_per_s", self.ageing_tokens_per_s, ok, "give a positive number")

    @property
    def is_static(self) -> bool:
        return False

    def key(self, seq: SequenceView, view: View) -> tuple[float, ...]:
        left_tokens = seq.total_tokens - view.memory.hit_tokens(seq)
        return (left_tokens - self.ageing_tokens_per_s * (view.now_s - seq.arrival_s),)
