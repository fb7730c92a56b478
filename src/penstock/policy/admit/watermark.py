"""Admit while memory for the prompt is there now."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, PoolView, View
from penstock.policy.admit.follow import STEP_TOKENS, check_follow_option, start_or_follow
from penstock.policy.admit.stuck import others_run, wait_unless_stuck
from penstock.policy.options import check_option


@dataclass(frozen=True, slots=True)
class Watermark:
    """Start if the known tokens fit and `reserve_frac` of the pool stays available for those who decode.

    Optimistic: outputs are not counted, so a full pool leads to preemption. With nobody else running the reserve does
    not apply; otherwise a prompt nearly as large as the pool could never start. With `follow`, a prompt that shares
    what a running one is about to compute starts when that is in the cache, if it and those before it have more than
    `follow_beyond_tokens` to compute.
    """

    reserve_frac: float = 0.02
    follow: bool = True
    follow_beyond_tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        check_follow_option(self.follow_beyond_tokens)
        check_option("reserve_frac", self.reserve_frac, 0 <= self.reserve_frac < 1, "give a share from 0 to below 1")

    def admit(self, seq: SequenceView, view: View) -> Admission:
        reserve_frac = self.reserve_frac if others_run(seq, view) else 0.0
        is_room = all(_has_room(pool, seq, view, reserve_frac) for pool in view.memory.pools)
        if not is_room:
            return wait_unless_stuck(seq, view)
        return start_or_follow(seq, view, self.follow_beyond_tokens) if self.follow else Admission.START


def _has_room(pool: PoolView, seq: SequenceView, view: View, reserve_frac: float) -> bool:
    # Shared blocks are already held or evictable, and are counted as needed: the error is on the safe side and lasts
    # one admission. Prompts that were admitted before will still take theirs, and those that follow them.
    promised_blocks = sum(_missing_blocks(pool, other) for other in (*view.prefilling, *view.following))
    reserve_blocks = int(reserve_frac * pool.total_blocks)
    return _missing_blocks(pool, seq) + promised_blocks + reserve_blocks <= pool.available_blocks


def _missing_blocks(pool: PoolView, seq: SequenceView) -> int:
    """One token more than is known: the first output's state needs room at once."""
    return max(0, pool.blocks_for(seq.total_tokens + 1) - pool.held_blocks(seq))
