"""Where time comes from. Decisions get a `Clock`; only a shell chooses which."""

from __future__ import annotations

import time
from math import inf
from typing import Protocol


class Clock(Protocol):
    """Seconds that never run backwards; the zero point has no meaning."""

    def now_s(self) -> float: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A clock that moves only when told: tests and the simulator."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, by_s: float) -> None:
        """Move forward. Raises ValueError for a step that is negative or no number: time never runs backwards."""
        if not 0 <= by_s < inf:
            raise ValueError(f"a clock cannot move by {by_s} s")
        self._now_s += by_s
