"""Admit only what can never run out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, PoolView, View
from penstock.policy.admit.follow import STEP_TOKENS, check_follow_option, start_or_follow
from penstock.policy.admit.stuck import wait_unless_stuck


@dataclass(frozen=True, slots=True)
class WorstCase:
    """Start if every running sequence and this one could put out all they may (`max_tokens`) at the same time.

    No preemption ever, at the price of idle memory: the conservative scheduler of the comparison in Past-Future
    (arXiv 2507.10150). `follow` as with `watermark`.
    """

    follow: bool = True
    follow_beyond_tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        check_follow_option(self.follow_beyond_tokens)

    def admit(self, seq: SequenceView, view: View) -> Admission:
        others = [running for running in view.running if running.id != seq.id]  # a paused one holds its row already
        together = [*others, *view.following, seq]
        is_room = all(_worst_blocks(pool, together) <= pool.total_blocks for pool in view.memory.pools)
        if not is_room:
            return wait_unless_stuck(seq, view)
        return start_or_follow(seq, view, self.follow_beyond_tokens) if self.follow else Admission.START


def _worst_blocks(pool: PoolView, seqs: Sequence[SequenceView]) -> int:
    return sum(pool.blocks_for(seq.total_tokens - seq.output_tokens + seq.output_limit_tokens) for seq in seqs)
