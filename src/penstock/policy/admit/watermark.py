"""Admit while memory for the prompt is there now."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, View
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
        memory = view.memory
        # One token more than is known: the first output's state needs room at once. Shared blocks are already held or
        # evictable, and are counted as needed: the error is on the safe side and lasts one admission.
        need_blocks = memory.blocks_for(seq.total_tokens + 1) - memory.held_blocks(seq)
        reserve_blocks = int(self.reserve_frac * memory.total_blocks) if others_run(seq, view) else 0
        is_room = need_blocks + _promised_blocks(view) + reserve_blocks <= memory.available_blocks
        return Admission.START if is_room else wait_unless_stuck(seq, view)


def _promised_blocks(view: View) -> int:
    """Blocks that prompts already admitted will still take."""
    return sum(
        max(0, view.memory.blocks_for(seq.total_tokens + 1) - view.memory.held_blocks(seq)) for seq in view.prefilling
    )
