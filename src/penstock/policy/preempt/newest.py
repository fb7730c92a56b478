"""The newest yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Preemption, Steady, View, Yield


@dataclass(frozen=True, slots=True)
class Newest(Steady):
    """The running sequence that arrived last gives its memory up and is recomputed later.

    The oldest is never chosen while another runs, so at least one sequence always makes progress.
    """

    def choose(self, view: View) -> Sequence[Preemption]:
        return ()

    def victim(self, view: View, candidates: Sequence[SequenceView]) -> Preemption:
        victim = newest(candidates)
        assert victim.row is not None
        return Preemption(victim.row, Yield.RECOMPUTE)


def newest(candidates: Sequence[SequenceView]) -> SequenceView:
    """Of the least urgent ones the one that arrived last."""
    return max(candidates, key=lambda seq: (seq.request.priority, seq.arrival_s, seq.id))
