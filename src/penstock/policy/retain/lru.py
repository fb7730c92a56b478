"""The least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from penstock.core.sequence import SequenceView


class LeastRecentlyUsed:
    """Evict in the order in which blocks became unused. Constant time per event."""

    def __init__(self) -> None:
        # Oldest first. Not a dict: finding the first key of one that shrank at the front walks over every hole.
        self._order: OrderedDict[int, None] = OrderedDict()

    def pin_until_s(self, seq: SequenceView, now_s: float) -> float | None:
        return None

    def on_cached(self, blocks: Sequence[int], now_s: float) -> None:
        order = self._order
        for block in blocks:
            order[block] = None

    def on_removed(self, blocks: Sequence[int]) -> None:
        order = self._order
        for block in blocks:
            del order[block]

    def victims(self, n: int) -> Sequence[int]:
        return tuple(islice(self._order, n))
