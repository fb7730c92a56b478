"""A timeline as a file for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

Complete events in microseconds ("ph": "X"), one process for the host and one for the device, and an arrow from each
submission to its step. Times are whole nanoseconds before they are written, so that what lies within something still
does. Format: "Trace Event Format" of the Chromium project.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.engine.timeline import Slice, Timeline, summarise

HOST, DEVICE = 1, 2
HOST_TRACK, STEPS_TRACK, COPIES_TRACK, GAPS_TRACK = 1, 2, 3, 4
PROCESSES = {HOST: "host", DEVICE: "device"}
TRACKS = {
    (HOST, HOST_TRACK): "step loop",
    (DEVICE, STEPS_TRACK): "steps",
    (DEVICE, COPIES_TRACK): "copies between the tiers",
    (DEVICE, GAPS_TRACK): "gaps, by cause",
}
Event = dict[str, Any]


def write_chrome_trace(timeline: Timeline, path: Path) -> None:
    """Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.write(
            '{"displayTimeUnit":"ms","otherData":' + json.dumps(summarise(timeline).as_dict()) + ',"traceEvents":['
        )
        separator = "\n"
        for event in events_of(timeline):
            file.write(separator + json.dumps(event, separators=(",", ":")))
            separator = ",\n"
        file.write("\n]}\n")


def events_of(timeline: Timeline) -> Iterator[Event]:
    """All events; those of one track in the order of time."""
    for process, name in PROCESSES.items():
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
    for (process, track), name in TRACKS.items():
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": track, "args": {"name": name}}
    writer = _Writer(timeline.phases[0].start_s if timeline.phases else 0.0)
    phases = (Slice(host.phase.value, host.start_s, host.stop_s) for host in timeline.phases)
    for slice_ in heapq.merge(phases, timeline.policies, key=lambda slice_: slice_.start_s):
        yield writer.slice(HOST, HOST_TRACK, slice_.name, slice_.start_s, slice_.stop_s)
    for step, start_s, stop_s in timeline.device_steps():
        args = {
            "plan": step.plan_id,
            "decode_rows": step.decode_rows,
            "chunks": step.chunks,
            "chunk_tokens": step.chunk_tokens,
            "ran": step.how,
        }
        yield writer.slice(DEVICE, STEPS_TRACK, step.kind, start_s, stop_s, args)
        yield writer.end_of_arrow("s", HOST, HOST_TRACK, step.plan_id, step.submit_s)
        yield writer.end_of_arrow("f", DEVICE, STEPS_TRACK, step.plan_id, start_s)
    for copy in timeline.copies:
        yield writer.slice(DEVICE, COPIES_TRACK, copy.name, copy.start_s, copy.stop_s)
    for gap in timeline.gaps():
        yield writer.slice(DEVICE, GAPS_TRACK, gap.name, gap.start_s, gap.stop_s)


class _Writer:
    """Counts from the first moment."""

    def __init__(self, zero_s: float) -> None:
        self._zero_s = zero_s

    def slice(
        self, process: int, track: int, name: str, start_s: float, stop_s: float, args: Event | None = None
    ) -> Event:
        start_ns, stop_ns = self._ns(start_s), self._ns(stop_s)
        event = {
            "ph": "X",
            "name": name,
            "pid": process,
            "tid": track,
            "ts": start_ns / 1000,
            "dur": (stop_ns - start_ns) / 1000,
        }
        return event if args is None else {**event, "args": args}

    def end_of_arrow(self, phase: str, process: int, track: int, plan_id: int, at_s: float) -> Event:
        place = {"pid": process, "tid": track, "ts": self._ns(at_s) / 1000}
        return {"ph": phase, "bp": "e", "cat": "plan", "name": "plan", "id": plan_id, **place}

    def _ns(self, at_s: float) -> int:
        return round(1e9 * (at_s - self._zero_s))
