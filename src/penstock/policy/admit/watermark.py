"""Admit while memory for the prompt is there now."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, PoolView, View
from penstock.policy.admit.stuck import others_run, wait_unless_stuck
from penstock.policy.options import check_option


@dataclass(frozen=True, slots=True)
class Watermark:
    """Start if the known tokens fit and `reserve_frac` of the pool stays available for those who decode.

    Optimistic: outputs are not counted, so a full pool leads to preemption. With nobody else running the reserve does
    not apply; otherwise a prompt nearly as large as the pool could never start.
    """

    reserve_frac: float = 0.02

    def __post_init__(self) -> None:
        check_option("reserve_frac", self.reserve_frac, 0 <= self.reserve_frac < 1, "give a share from 0 to below 1")

    def admit(self, seq: SequenceView, view: View) -> Admission:
        reserve_frac = self.reserve_frac if others_run(seq, view) else 0.0
        is_room = all(_has_room(pool, seq, view, reserve_frac) for pool in view.memory.pools)
        return Admission.START if is_room else wait_unless_stuck(seq, view)


def _has_room(pool: PoolView, seq: SequenceView, view: View, reserve_frac: float) -> bool:
    # Shared blocks are already held or evictable, and are counted as needed: the error is on the safe side and lasts
    # one admission. Prompts that were admitted before will still take theirs.
    promised_blocks = sum(_missing_blocks(pool, other) for other in view.prefilling)
    reserve_blocks = int(reserve_frac * pool.total_blocks)
    return _missing_blocks(pool, seq) + promised_blocks + reserve_blocks <= pool.available_blocks


def _missing_blocks(pool: PoolView, seq: SequenceView) -> int:
    """One token more than is known: the first output's state needs room at once."""
    return max(0, pool.blocks_for(seq.total_tokens + 1) - pool.held_blocks(seq))
