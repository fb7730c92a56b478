"""By the priority that the client gave."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.sequence import SequenceView
from penstock.core.view import View


@dataclass(frozen=True, slots=True)
class ByPriority:
    """Lowest `priority` first (the meaning that vLLM gives the field), then by arrival."""

    @property
    def is_static(self) -> bool:
        return True

    def key(self, seq: SequenceView, view: View) -> tuple[float, ...]:
        return (seq.request.priority, seq.arrival_s)
