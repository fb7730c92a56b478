"""Admit only what can never run out of memory."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, View
from penstock.policy.admit.stuck import wait_unless_stuck


@dataclass(frozen=True, slots=True)
class WorstCase:
    """Start if every running sequence and this one could put out all they may (`max_tokens`) at the same time.

    No preemption ever, at the price of idle memory: the conservative scheduler of the comparison in Past-Future
    (arXiv 2507.10150).
    """

    def admit(self, seq: SequenceView, view: View) -> Admission:
        others = (running for running in view.running if running.id != seq.id)  # a paused one holds its row already
        worst_blocks = sum(_worst_blocks(running, view) for running in others) + _worst_blocks(seq, view)
        return Admission.START if worst_blocks <= view.memory.total_blocks else wait_unless_stuck(seq, view)


def _worst_blocks(seq: SequenceView, view: View) -> int:
    prompt_tokens = seq.total_tokens - seq.output_tokens
    return view.memory.blocks_for(prompt_tokens + seq.output_limit_tokens)
