"""A lane that moves nothing before a step is made to wait for it: what an accelerator may do at worst."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class LateMark:
    lane: LateLane
    at: int

    @property
    def is_reached(self) -> bool:
        return self.lane.n_done >= self.at

    def hold_steps(self) -> None:
        self.lane.run_to(self.at)

    def seconds_since(self, earlier: LateMark) -> float:
        return 1e-3 * (self.at - earlier.at)


class LateLane:
    """`most_queued`: so much may wait before the oldest is done; a real lane ends some time."""

    def __init__(self, most_queued: int = 10**9) -> None:
        self.n_done = 0
        self.n_held = 0
        self._queue: list[Callable[[], None]] = []
        self._most_queued = most_queued

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    def follow_steps(self) -> None:
        """Steps are done when they are queued."""

    def run(self, work: Callable[[], None]) -> None:
        self._queue.append(work)
        self.run_to(len(self._queue) - self._most_queued)

    def mark(self) -> LateMark:
        return LateMark(self, len(self._queue))

    def run_to(self, at: int) -> None:
        self.n_held += at > self.n_done
        while self.n_done < at:
            self._queue[self.n_done]()
            self.n_done += 1
