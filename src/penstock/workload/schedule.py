"""When each request of a trace goes out, and that each ends in exactly one record.

Open loop: every request is sent at its own time, whatever the server does; a slow server meets the load that the trace
says. Sessions (closed loop): the first turn of a session is sent at its time, each later one `pause_s` after the
answer to the turn before, as a reader would; where the trace has no pause, the gap between the two arrivals is taken.
One task walks the trace and makes the next body *before* it sleeps: only the hand-over lies between due and sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from penstock.core.request import NO_OBJECTIVE
from penstock.workload.kinds import Pacing
from penstock.workload.prompts import PromptStream
from penstock.workload.records import Outcome, ReplayError, RequestRecord, identity
from penstock.workload.trace import Trace, TraceRequest

Numbered = tuple[int, TraceRequest]


class Sender(Protocol):
    """Sends one request and returns its record whatever happens, cancellation too."""

    async def send(self, index: int, request: TraceRequest, body: bytes, scheduled_s: float) -> RequestRecord: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyMaker:
    """Makes request bodies. extra: fields to add to each; has_objectives: send each request's limits along."""

    model: str
    prompts: PromptStream = field(default_factory=PromptStream)
    extra: Mapping[str, Any] = field(default_factory=dict)
    has_objectives: bool = True

    def body(self, index: int, request: TraceRequest) -> bytes:
        prompt = self.prompts.prompt(index, request)
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt if isinstance(prompt, str) else prompt.tolist(),
            "max_tokens": max(1, request.output_tokens),  # a recorded failure still cost its prompt
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.client:
            body["user"] = request.client
        if self.has_objectives and request.objective != NO_OBJECTIVE:
            body["objective"] = request.objective
        return msgspec.json.encode(body | dict(self.extra))


@dataclass(slots=True, kw_only=True)
class Schedule:
    """Sends every request of a trace when it is due.

    now_s: seconds since the replay began. speed: 2 replays twice as fast, pauses included. When max_total_s are over
    or `stopped` is set, what runs is given up and what is left is not sent; both get their record.
    """

    trace: Trace
    sender: Sender
    bodies: BodyMaker
    now_s: Callable[[], float]
    pacing: Pacing = Pacing.OPEN
    speed: float = 1.0
    max_total_s: float = 3600.0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _records: list[RequestRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("speed", "max_total_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ReplayError(f"{name} is {getattr(self, name)}: give a positive number")

    async def run(self) -> tuple[RequestRecord, ...]:
        """Returns one record per request, in the trace's order."""
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            for rows in self._starts():
                index, request = rows[0]
                due_s = request.arrival_s / self.speed
                if due_s < self.max_total_s:
                    body = self.bodies.body(index, request)
                    await self._wait_until(due_s)
                if self._is_over() or due_s >= self.max_total_s:
                    self._leave_out(rows)
                    continue
                task = group.create_task(self._follow(rows, body, due_s))
                running.add(task)
                task.add_done_callback(running.discard)
            await self._drain(running)
        return tuple(sorted(self._records, key=lambda record: record.index))

    def _starts(self) -> Iterator[list[Numbered]]:
        """What starts by the trace's own time, with what follows each; lazily, unless sessions must be gathered."""
        numbered = enumerate(self.trace)
        if self.pacing is Pacing.OPEN:
            return ([row] for row in numbered)
        sessions: dict[str | int, list[Numbered]] = {}
        for index, request in numbered:
            sessions.setdefault(index if request.session is None else request.session, []).append((index, request))
        return iter(sessions.values())

    async def _follow(self, rows: list[Numbered], body: bytes, due_s: float) -> None:
        """Send a first request and then, one after the other, those that wait for its answer."""
        done = 0
        try:
            for place, (index, request) in enumerate(rows):
                if place > 0:
                    due_s = self.now_s() + self._pause_s(rows[place - 1][1], request)
                    body = self.bodies.body(index, request)
                    await self._wait_until(due_s)
                if self._is_over() or _is_cancelled():  # a sender turns cancellation into a record and returns
                    return
                self._records.append(await self.sender.send(index, request, body, due_s))
                done += 1
        finally:
            self._leave_out(rows[done:])

    def _pause_s(self, earlier: TraceRequest, later: TraceRequest) -> float:
        pause_s = later.pause_s if later.pause_s is not None else later.arrival_s - earlier.arrival_s
        return pause_s / self.speed

    async def _wait_until(self, due_s: float) -> None:
        """Until a time, the end of the replay, or a stop; whichever is first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(due_s, self.max_total_s) - self.now_s())):
                await self.stopped.wait()

    def _is_over(self) -> bool:
        return self.stopped.is_set() or self.now_s() >= self.max_total_s

    async def _drain(self, running: set[asyncio.Task[None]]) -> None:
        """Wait for what runs, but not beyond the end."""
        await asyncio.sleep(0)  # a task that never began could not write its record
        if not running:
            return
        end = asyncio.create_task(self._wait_until(self.max_total_s))
        done = asyncio.create_task(asyncio.wait(tuple(running)))
        await asyncio.wait((done, end), return_when=asyncio.FIRST_COMPLETED)
        for task in (*running, done, end):
            task.cancel()

    def _leave_out(self, rows: list[Numbered]) -> None:
        self._records += [
            RequestRecord(
                index=index,
                scheduled_s=round(request.arrival_s / self.speed, 6),
                outcome=Outcome.NOT_SENT,
                error="the replay was stopped" if self.stopped.is_set() else f"its {self.max_total_s:g} s were over",
                **identity(request),
            )
            for index, request in rows
        ]


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
