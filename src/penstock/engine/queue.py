"""The waiting queue, in the order of the `order` slot."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from penstock.core.sequence import Sequence
from penstock.core.view import OrderPolicy, View


class WaitQueue:
    """Waiting and paused sequences. Sorted when members changed, or at every look if the keys move with time."""

    def __init__(self, order: OrderPolicy) -> None:
        self._order = order
        self._members: dict[str, Sequence] = {}
        self._listed: tuple[Sequence, ...] | None = ()  # `members`; None: they changed since somebody asked
        self._sorted: list[Sequence] = []
        self._is_sorted = True
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._members)

    def add(self, seq: Sequence) -> None:
        assert seq.id not in self._members, f"{seq.id} waits already"
        self._members[seq.id] = seq
        self._listed = None
        self.tokens += len(seq.request.prompt)
        self._is_sorted = False

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out. It stays out of order-dependent answers until the next `ordered`."""
        del self._members[seq.id]
        self._listed = None
        self.tokens -= len(seq.request.prompt)
        self._is_sorted = False

    def note_changed(self) -> None:
        """Something of a member changed, such as its output, and with it perhaps its key."""
        self._is_sorted = False

    def members(self) -> Seq[Sequence]:
        """In no particular order, but always the same one."""
        if self._listed is None:
            self._listed = tuple(self._members.values())
        return self._listed

    def ordered(self, view: View) -> Seq[Sequence]:
        """Best first: by the policy's key, then arrival, then id, so that the order is total."""
        if not (self._is_sorted and self._order.is_static):
            self._sorted = sorted(
                self._members.values(), key=lambda seq: (self._order.key(seq, view), seq.arrival_s, seq.id)
            )
            self._is_sorted = True
        return self._sorted
