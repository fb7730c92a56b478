"""When the device worked on each step, on the clock of the host.

Theory. An accelerator's events know the time between two of them, not the time of day. So one event is tied to the
host's clock by waiting for it, and the others are counted from there. Two clocks drift apart, by some microseconds per
second; but no work begins before it was queued, and none ends after its result was read. Where a step would break
that, the clocks have moved by so much at least, and what follows is counted anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from penstock.core.executor import DeviceSpan
from penstock.runtime.readback import Stopwatch

TRIES = 5
STEPS_PER_ANCHOR = 256  # differences have 24 bits: what is counted from must not lie far back


class Anchor:
    """Where the events of a device stand on the host's clock. event: it was reached at `at_s`."""

    def __init__(self, event: torch.Event, at_s: float) -> None:
        self._event = event
        self._at_s = at_s
        self._steps = 0

    def place(self, start: torch.Event, stop: torch.Event, queued_s: float, read_s: float) -> tuple[float, float]:
        """When a step began and ended that was queued and read at these times."""
        start_s, stop_s = (self._at_s + self._event.elapsed_time(event) / 1000 for event in (start, stop))
        moved_s = max(0.0, queued_s - start_s) - max(0.0, stop_s - read_s)
        self._at_s += moved_s
        self._steps += 1
        if self._steps % STEPS_PER_ANCHOR == 0:
            self._event, self._at_s = stop, stop_s + moved_s
        return start_s + moved_s, stop_s + moved_s


def anchor_of(device: torch.device) -> Anchor:
    """Waits for the device, a few times: the shortest wait is the most exact."""
    found = []
    for _ in range(TRIES):
        torch.accelerator.synchronize(device)
        event = torch.Event(device, enable_timing=True)
        before_s = time.monotonic()
        event.record()
        event.synchronize()
        found.append((time.monotonic() - before_s, before_s, event))
    took_s, before_s, event = min(found, key=lambda one: one[0])
    return Anchor(event, before_s + took_s / 2)


class Spans:
    """Tells of each step when it ran."""

    def __init__(self, device: torch.device, to: Callable[[DeviceSpan], None]) -> None:
        self._anchor = None if device.type == "cpu" else anchor_of(device)
        self._to = to

    def tell(self, watch: Stopwatch, how: str) -> None:
        """Of a step that is over."""
        start_s, stop_s = watch.host_span_s
        if self._anchor is not None and watch.events is not None:
            start_s, stop_s = self._anchor.place(*watch.events, start_s, time.monotonic())
        self._to(DeviceSpan(start_s, stop_s, how))
