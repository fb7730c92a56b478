"""Admit only what can never run out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, PoolView, View
from penstock.policy.admit.stuck import wait_unless_stuck


@dataclass(frozen=True, slots=True)
class WorstCase:
    """Start if every running sequence and this one could put out all they may (`max_tokens`) at the same time.

    No preemption ever, at the price of idle memory: the conservative scheduler of the comparison in Past-Future
    (arXiv 2507.10150).
    """

    def admit(self, seq: SequenceView, view: View) -> Admission:
        others = [running for running in view.running if running.id != seq.id]  # a paused one holds its row already
        is_room = all(_worst_blocks(pool, [*others, seq]) <= pool.total_blocks for pool in view.memory.pools)
        return Admission.START if is_room else wait_unless_stuck(seq, view)


def _worst_blocks(pool: PoolView, seqs: Sequence[SequenceView]) -> int:
    return sum(pool.blocks_for(seq.total_tokens - seq.output_tokens + seq.output_limit_tokens) for seq in seqs)
