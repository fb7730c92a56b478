"""The newest yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import Preemption, View, Yield


@dataclass(frozen=True, slots=True)
class Newest:
    """The running sequence that arrived last gives its memory up and is recomputed later.

    The oldest is never chosen while another runs, so at least one sequence always makes progress.
    """

    def choose(self, view: View) -> Sequence[Preemption]:
        return ()

    def victim(self, view: View, candidates: Sequence[SequenceView]) -> Preemption:
        newest = max(candidates, key=lambda seq: (seq.request.priority, seq.arrival_s, seq.id))
        assert newest.row is not None
        return Preemption(newest.row, Yield.RECOMPUTE)
