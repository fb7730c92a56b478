"""The least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict

from penstock.core.sequence import SequenceView


class LeastRecentlyUsed:
    """Evict in the order in which blocks became unused. Constant time per event."""

    def __init__(self) -> None:
        # Oldest first. Not a dict: finding the first key of one that shrank at the front walks over every hole.
        self._order: OrderedDict[int, None] = OrderedDict()

    def pin_until_s(self, seq: SequenceView, now_s: float) -> float | None:
        return None

    def on_cached(self, block: int, now_s: float) -> None:
        self._order[block] = None

    def on_removed(self, block: int) -> None:
        del self._order[block]

    def victim(self) -> int:
        return next(iter(self._order))
