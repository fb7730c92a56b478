"""One request over HTTP: an OpenAI-style streamed completion, taken apart as cheaply as it arrives.

An event with non-empty `choices` carries output; the usage event has empty `choices`; `{"error": ...}` can come after
status 200; `[DONE]` ends the stream, but a server may leave it out. A stream that ends with neither `[DONE]`, a finish
reason nor usage was cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from penstock.workload.records import Outcome, ReplayError, RequestRecord, identity
from penstock.workload.trace import TraceRequest

BUSY_STATUSES = frozenset({429, 503})
MAX_ERROR_BYTES = 4096
MAX_ERROR_CHARS = 300
MAX_EVENT_BYTES = 4 << 20


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Metrics(msgspec.Struct):
    queue_time_ms: float | None = None


class _Event(msgspec.Struct):
    """Only what is read; everything else in an event is skipped by the decoder."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    error: Any = None


_event_decoder = msgspec.json.Decoder(_Event)


@dataclass(slots=True)
class Counts:
    """Running counts for whoever watches."""

    sent: int = 0
    ended: int = 0
    failed: int = 0
    events: int = 0


@dataclass(slots=True)
class Answer:
    """What has arrived of one answer so far; becomes a record when the request ends, whatever the end is."""

    token_s: list[float] = field(default_factory=list)
    usage: _Usage | None = None
    queue_ms: float | None = None
    is_finished: bool = False
    error: str | None = None
    outcome: Outcome | None = None
    retry_after_s: float | None = None

    def take(self, data: bytes, now_s: float) -> None:
        """Take the payload of one `data:` line. Raises ReplayError if it is not an event of a completion."""
        if data == b"[DONE]":
            self.is_finished = True
            return
        try:
            event = _event_decoder.decode(data)
        except msgspec.DecodeError as error:
            raise ReplayError(f"the server sent an event that is not a completion chunk: {error}") from error
        if event.error is not None:
            self.fail(Outcome.ERROR, _message(event.error))
        if event.choices:
            self.token_s.append(now_s)
            self.is_finished = self.is_finished or event.choices[0].finish_reason is not None
        if event.usage is not None:
            self.usage = event.usage
            self.is_finished = self.is_finished or not event.choices  # with choices it is a running count
        if event.metrics is not None:
            self.queue_ms = event.metrics.queue_time_ms

    def fail(self, outcome: Outcome, error: str) -> None:
        if self.outcome is None:  # the first failure is the cause
            self.outcome, self.error = outcome, error

    def record(
        self, index: int, request: TraceRequest, scheduled_s: float, sent_s: float, end_s: float
    ) -> RequestRecord:
        if not self.is_finished:
            self.fail(Outcome.CUT, "the stream ended without a finish reason, usage or [DONE]")
        usage = self.usage or _Usage()
        return RequestRecord(
            index=index,
            scheduled_s=_round(scheduled_s),
            sent_s=_round(sent_s),
            end_s=_round(end_s),
            token_s=tuple(map(_round, self.token_s)),
            outcome=self.outcome or Outcome.OK,
            error=self.error,
            retry_after_s=self.retry_after_s,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None,
            queue_ms=self.queue_ms,
            **identity(request),
        )


def _round(time_s: float) -> float:
    return round(time_s, 6)  # microseconds: below the resolution of any socket, and half the bytes in the file


def _message(error: Any) -> str:
    """The human part of a decoded error: OpenAI's `error.message` where there is one, else all of it."""
    while isinstance(error, dict) and (inner := error.get("error") or error.get("message")):
        error = inner
    return str(error)[:MAX_ERROR_CHARS]


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The payloads of the `data:` lines of a server-sent event stream, as they arrive; comments are skipped."""
    left = b""
    async for chunk in chunks:
        *lines, left = (left + chunk).split(b"\n")
        if len(left) > MAX_EVENT_BYTES:
            raise ReplayError(f"the server sent a line of more than {MAX_EVENT_BYTES} bytes in an event stream")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if left.startswith(b"data:"):  # the last line may lack its end
        yield left[5:].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionsClient:
    """Sends one prepared body to /v1/completions and reads the stream to its end.

    now_s: seconds since the replay began. request_timeout_s: a request that takes longer is given up.
    """

    http: aiohttp.ClientSession
    url: str
    now_s: Callable[[], float]
    counts: Counts
    request_timeout_s: float

    async def send(self, index: int, request: TraceRequest, body: bytes, scheduled_s: float) -> RequestRecord:
        answer = Answer()
        self.counts.sent += 1
        sent_s = self.now_s()
        try:
            async with asyncio.timeout(self.request_timeout_s):
                await self._stream(answer, request, index, body)
        except TimeoutError:
            answer.fail(Outcome.TIMED_OUT, f"no complete answer within {self.request_timeout_s:g} s")
        except asyncio.CancelledError:  # only the end of the replay cancels: what has arrived is still a record
            answer.fail(Outcome.TIMED_OUT, "still running when the replay ended")
        except (aiohttp.ClientError, OSError) as error:
            answer.fail(Outcome.CUT, f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS])
        except ReplayError as error:
            answer.fail(Outcome.ERROR, str(error))
        self.counts.ended += 1
        self.counts.failed += answer.outcome is not None
        return answer.record(index, request, scheduled_s, sent_s, self.now_s())

    async def _stream(self, answer: Answer, request: TraceRequest, index: int, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "X-Request-ID": f"replay-{index}"}
        if request.session is not None:  # what routers use for stickiness
            headers["X-Correlation-ID"] = headers["X-Session-Affinity"] = request.session
        async with self.http.post(f"{self.url}/v1/completions", data=body, headers=headers) as response:
            if response.status != 200:
                await _take_refusal(answer, response)
                return
            async for data in sse_data(response.content.iter_any()):
                answer.take(data, self.now_s())
                self.counts.events += 1
                if answer.outcome is not None:
                    return


async def _take_refusal(answer: Answer, response: aiohttp.ClientResponse) -> None:
    body = await response.content.read(MAX_ERROR_BYTES)
    outcome = Outcome.REFUSED if response.status in BUSY_STATUSES else Outcome.ERROR
    try:
        said = _message(msgspec.json.decode(body))
    except msgspec.DecodeError:
        said = body.decode(errors="replace")[:MAX_ERROR_CHARS]
    answer.fail(outcome, f"HTTP {response.status}: {said}")
    try:
        answer.retry_after_s = float(response.headers.get("Retry-After", ""))
    except ValueError:
        answer.retry_after_s = None  # absent, or a date: then only the refusal is known
