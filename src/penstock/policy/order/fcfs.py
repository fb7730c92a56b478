"""First come, first served."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import View


@dataclass(frozen=True, slots=True)
class FirstComeFirstServed:
    """In the order of arrival. A preempted sequence keeps its place, so it is the first to come back."""

    @property
    def is_static(self) -> bool:
        return True

    def key(self, seq: SequenceView, view: View) -> tuple[float, ...]:
        return (seq.arrival_s,)
