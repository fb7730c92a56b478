"""Completions and chat: run a job on the engine, and write its answer as a stream or in one piece."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from penstock.api.chunks import ChatChunks, CompletionChunks, echoed
from penstock.api.errors import Aborted, GenerationFailed, refusal_of
from penstock.api.http import STREAM_TYPE, Call, Response, json_response
from penstock.api.limits import Bodies, Limits
from penstock.api.logprobs import CompletionLogprobs, TokenNames, chat_logprobs, prompt_logprobs
from penstock.api.metrics import Meter, Metrics
from penstock.api.schema import ChatBody, CompletionBody, decode_body
from penstock.api.tally import Tally
from penstock.api.translate import Job, Translator
from penstock.core.clock import Clock
from penstock.core.executor import TokenLogprobs
from penstock.core.request import Request
from penstock.core.sequence import FinishReason
from penstock.engine.outputs import AsyncEngine, OutputDelta

Step = tuple[int, tuple[OutputDelta, ...]]  # place of the prompt in its call, what a step brought for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """The two doors to generation. wall_s: seconds since 1970, for `created`."""

    engine: AsyncEngine
    translator: Translator
    names: TokenNames
    limits: Limits
    bodies: Bodies
    metrics: Metrics
    clock: Clock
    wall_s: Callable[[], float]

    async def completions(self, call: Call) -> Response | None:
        body, call.extra_headers = decode_body(await self.bodies.read(call), CompletionBody)
        async with call.while_client_is_there():
            return await self._run(call, await self.translator.completion(body, call))

    async def chat(self, call: Call) -> Response | None:
        body, call.extra_headers = decode_body(await self.bodies.read(call), ChatBody)
        async with call.while_client_is_there():
            return await self._run(call, await self.translator.chat(body, call))

    async def _run(self, call: Call, job: Job) -> Response | None:
        call.id = job.id
        tally = Tally(job)
        watched = self._watched(job, tally, self.metrics.begin(job))
        async with contextlib.aclosing(watched) as steps:
            if job.is_stream:
                await self._stream(call, job, tally, steps)
                return None
            return await self._plain(job, tally, steps)

    async def _watched(self, job: Job, tally: Tally, meter: Meter) -> AsyncGenerator[Step, None]:
        """The steps of a job, counted. Raises GenerationFailed for a sample that the engine gave up."""
        async with contextlib.aclosing(run_all(self.engine, job.requests, self.limits.in_flight)) as steps:
            async for prompt, deltas in steps:
                now_s = self.clock.now_s()
                for delta in deltas:
                    tally.take(prompt, delta)
                    meter.take(prompt, delta, now_s)
                    if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                        raise _failure(delta)
                yield prompt, deltas

    async def _stream(self, call: Call, job: Job, tally: Tally, steps: AsyncIterator[Step]) -> None:
        """Headers wait for the first step, so that a refusal still has a status of its own."""
        form = ChatChunks if job.is_chat else CompletionChunks
        chunks = form(job, int(self.wall_s()), self.names, tally)
        try:
            async for prompt, deltas in steps:
                data = b"".join([chunks.events(prompt, delta) for delta in deltas])
                if not call.has_begun:
                    await call.begin(200, STREAM_TYPE, ((b"cache-control", b"no-store"),))
                if data:
                    await call.write(data)
        except Exception as error:
            if not call.has_begun:
                raise
            await call.end(self.metrics.refused(refusal_of(error), error, call.id).event)
            return
        await call.end(chunks.tail())

    async def _plain(self, job: Job, tally: Tally, steps: AsyncIterator[Step]) -> Response:
        parts = [_Parts() for _ in range(len(job.requests) * job.n)]
        prompt_entries: dict[int, tuple[TokenLogprobs | None, ...]] = {}
        async for prompt, deltas in steps:
            for delta in deltas:
                parts[prompt * job.n + delta.index].add(delta)
                if delta.prompt_logprobs is not None:
                    prompt_entries[prompt] = delta.prompt_logprobs
        choices = [
            self._choice(job, index, whole.joined(), prompt_entries.get(index // job.n))
            for index, whole in enumerate(parts)
        ]
        return json_response(
            {
                "id": job.id,
                "object": "chat.completion" if job.is_chat else "text_completion",
                "created": int(self.wall_s()),
                "model": job.model,
                "choices": choices,
                "usage": tally.usage(),
                "metrics": tally.timings(),
            }
        )

    def _choice(
        self, job: Job, index: int, whole: OutputDelta, prompt_entries: tuple[TokenLogprobs | None, ...] | None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if job.is_chat:
            choice["message"] = {"role": "assistant", "content": whole.text}
            choice["logprobs"] = chat_logprobs(self.names, whole.logprobs) if job.has_logprobs else None
        else:
            text, tokens = whole.text, whole.tokens
            entries: tuple[TokenLogprobs | None, ...] = whole.logprobs
            if job.echo is not None:
                text, tokens, entries = echoed(job, index // job.n, whole, prompt_entries)
            choice["text"] = text
            choice["logprobs"] = CompletionLogprobs(self.names).part(tokens, entries) if job.has_logprobs else None
        choice["finish_reason"] = whole.finish_reason
        choice["stop_reason"] = whole.stop
        if job.has_prompt_logprobs:
            choice["prompt_logprobs"] = prompt_logprobs(self.names, prompt_entries or (None,))
        return choice


@dataclass(slots=True)
class _Parts:
    """The deltas of one choice."""

    deltas: list[OutputDelta] = field(default_factory=list)

    def add(self, delta: OutputDelta) -> None:
        self.deltas.append(delta)

    def joined(self) -> OutputDelta:
        """As if one step had brought everything."""
        last = self.deltas[-1] if self.deltas else OutputDelta(index=0)
        return OutputDelta(
            index=last.index,
            text="".join([delta.text for delta in self.deltas]),
            tokens=tuple(token for delta in self.deltas for token in delta.tokens),
            logprobs=tuple(entry for delta in self.deltas for entry in delta.logprobs),
            finish_reason=last.finish_reason,
            stop=last.stop,
        )


def _failure(delta: OutputDelta) -> GenerationFailed:
    if delta.finish_reason is FinishReason.ABORT:
        return Aborted(delta.error or "the server ended this request before it was finished")
    return GenerationFailed(delta.error or "the engine could not finish this request")


async def run_all(engine: AsyncEngine, requests: tuple[Request, ...], in_flight: int) -> AsyncGenerator[Step, None]:
    """The steps of all requests as they come, at most `in_flight` requests at a time. Leaving early aborts the rest."""
    if len(requests) == 1:
        async with contextlib.aclosing(engine.generate(requests[0])) as steps:
            async for deltas in steps:
                yield 0, deltas
        return
    queue: asyncio.Queue[Step | Exception | None] = asyncio.Queue(maxsize=2 * in_flight)
    left = iter(enumerate(requests))

    async def work() -> None:
        try:
            for prompt, request in left:
                async with contextlib.aclosing(engine.generate(request)) as steps:
                    async for deltas in steps:
                        await queue.put((prompt, deltas))
            await queue.put(None)
        except Exception as error:  # noqa: BLE001 - handed to the reader, which raises it
            await queue.put(error)

    workers = [asyncio.create_task(work()) for _ in range(min(in_flight, len(requests)))]
    try:
        n_working = len(workers)
        while n_working:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                n_working -= 1
            else:
                yield item
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
