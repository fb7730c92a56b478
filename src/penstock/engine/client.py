"""The asyncio face of an engine behind a link.

One thread receives: it decodes messages, makes text of tokens, and hands a step's deltas to the event loop in one call.
So the loop's work per step is a put per open stream, whatever detokenization costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping

from penstock.core.clock import Clock, MonotonicClock
from penstock.core.errors import EngineDied, InvalidRequest, NeverFits, Overloaded, PenstockError, PromptTooLong
from penstock.core.executor import ModelFacts
from penstock.core.request import Request
from penstock.engine.ledger import log_lost
from penstock.engine.link import FrontEnd
from penstock.engine.messages import Abort, Add, Beat, Died, Hello, Message, Phase, Refused, Shutdown, Update, Updates
from penstock.engine.outputs import OutputDelta
from penstock.engine.text_stream import TextStreams
from penstock.text.tokenizer import Tokenizer

log = logging.getLogger("penstock.client")
BEAT_LATE_S = 3.0  # a heart beats every 0.25 s; this much silence means a stopped or starved process
STEP_LATE_S = 300.0
MAX_UNREAD_STEPS = 4096  # of one stream; minutes of output that nobody took
REFUSALS: Mapping[str, type[InvalidRequest]] = {kind.code: kind for kind in (PromptTooLong, NeverFits, InvalidRequest)}

Item = list[OutputDelta] | PenstockError


class EngineClient:
    """An `AsyncEngine` over a link. Made inside the event loop that uses it."""

    def __init__(
        self,
        link: FrontEnd,
        tokenizer: Tokenizer | None,
        on_phase: Callable[[Phase], None] = lambda phase: None,
        on_death: Callable[[Died], None] = lambda died: None,
        clock: Clock | None = None,
        max_unread_steps: int | None = MAX_UNREAD_STEPS,
    ) -> None:
        """clock: what `arrival_s` of the requests was read from. max_unread_steps: a stream whose reader is so far
        behind is cut; None keeps everything for it.
        """
        self._link = link
        self._texts = TextStreams(tokenizer)
        self._clock = clock or MonotonicClock()
        self._on_phase = on_phase
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._max_unread_steps = max_unread_steps
        self._streams: dict[str, asyncio.Queue[Item]] = {}
        self._requests: dict[str, Request] = {}  # of the open streams
        self._all_done = asyncio.Event()
        self._all_done.set()
        self._hello: asyncio.Future[ModelFacts] = self._loop.create_future()
        self._died: Died | None = None
        self._is_draining = False
        self._beat = Beat({})
        self._beat_at_s = time.monotonic()
        self._receiver = threading.Thread(target=self._receive, name="receiver", daemon=True)
        self._receiver.start()

    async def wait_ready(self) -> ModelFacts:
        """Wait until the engine serves. Raises EngineDied if it does not come to that."""
        return await asyncio.shield(self._hello)

    @property
    def facts(self) -> ModelFacts:
        assert self._hello.done(), "wait_ready first"
        return self._hello.result()

    @property
    def is_ready(self) -> bool:
        is_beating = time.monotonic() - self._beat_at_s < BEAT_LATE_S and self._beat.step_age_s < STEP_LATE_S
        return self._hello.done() and self._died is None and not self._is_draining and is_beating

    @property
    def n_open(self) -> int:
        return len(self._streams)

    def counters(self) -> Mapping[str, float]:
        return self._beat.counters

    async def generate(self, request: Request) -> AsyncGenerator[tuple[OutputDelta, ...], None]:
        """See `AsyncEngine.generate`."""
        if self._died is not None:
            raise EngineDied(self._died.message)
        if self._is_draining:
            raise Overloaded("the server is shutting down; use another one", reason="draining", retry_after_s=5.0)
        if request.id in self._streams:
            raise InvalidRequest(f"request id {request.id!r} is in use: give every request its own", param="request_id")
        items: asyncio.Queue[Item] = asyncio.Queue()
        self._streams[request.id] = items
        self._requests[request.id] = request
        self._all_done.clear()
        n_live = 0
        try:
            self._texts.open(request)
            self._link.send(Add(request, age_s=max(0.0, self._clock.now_s() - request.arrival_s)))
            n_live = request.sampling.n
            while n_live:
                item = await items.get()
                if isinstance(item, PenstockError):
                    n_live = 0
                    raise item
                n_live -= sum(delta.finish_reason is not None for delta in item)
                yield tuple(item)
        finally:
            self._texts.close(request)
            del self._streams[request.id], self._requests[request.id]
            if not self._streams:
                self._all_done.set()
            if n_live:
                self._link.send(Abort(request.id))

    async def drain(self, timeout_s: float) -> None:
        """Take no new request, let the open ones end, and fail what is left after `timeout_s`."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._all_done.wait()
        self._fail_all(EngineDied("the server was shut down before the request ended; send it again elsewhere"))

    async def close(self) -> None:
        """End the engine and the link."""
        self._is_draining = True
        self._fail_all(EngineDied("the server was shut down before the request ended; send it again elsewhere"))
        self._link.send(Shutdown())
        self._link.close()
        await asyncio.to_thread(self._receiver.join)
        if not self._hello.done():
            self._hello.cancel()

    # --- the receiver thread ------------------------------------------------------------------------------------------
    def _receive(self) -> None:
        while (message := self._link.receive()) is not None:
            self._take(message)

    def _take(self, message: Message) -> None:
        match message:
            case Updates(updates):
                self._take_updates(updates)
            case Beat():
                self._beat, self._beat_at_s = message, time.monotonic()
            case Refused():
                self._tell(self._put, message.request_id, _refusal(message))
            case Hello(facts):
                self._beat_at_s = time.monotonic()
                self._tell(self._note_hello, facts)
            case Phase():
                self._tell(self._on_phase, message)
            case Died():
                self._tell(self._note_death, message)

    def _take_updates(self, updates: list[Update]) -> None:
        by_request: defaultdict[str, list[OutputDelta]] = defaultdict(list)
        for update in updates:
            try:
                deltas, finishes = self._texts.process((update,))
            except Exception:
                log.exception("request %s: no text could be made of its tokens", update.request_id)
                self._link.send(Abort(update.request_id))
                error = PenstockError("the server could not make text of this request's tokens; its log says more")
                self._tell(self._put, update.request_id, error)
                continue
            for finish in finishes:
                self._link.send(finish)
            for request_id, delta in deltas:
                by_request[request_id].append(delta)
        if by_request:
            self._tell(self._put_all, by_request)

    def _tell(self, call: Callable[..., None], *what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(call, *what)

    # --- the event loop -----------------------------------------------------------------------------------------------
    def _put_all(self, by_request: Mapping[str, list[OutputDelta]]) -> None:
        for request_id, deltas in by_request.items():
            self._put(request_id, deltas)

    def _put(self, request_id: str, item: Item) -> None:
        items = self._streams.get(request_id)
        if items is None:
            return
        if self._max_unread_steps is not None and items.qsize() >= self._max_unread_steps:
            item = self._cut(request_id, items)
        items.put_nowait(item)

    def _cut(self, request_id: str, items: asyncio.Queue[Item]) -> Overloaded:
        """A reader that is too far behind must not fill the memory; what it has not read is lost to it."""
        while not items.empty():
            items.get_nowait()
        self._texts.close(self._requests[request_id])
        self._link.send(Abort(request_id))
        slow = (
            f"the answer was read too slowly: {self._max_unread_steps} steps of it waited; read faster, or ask for less"
        )
        return Overloaded(slow, reason="slow_reader", retry_after_s=1.0)

    def _note_hello(self, facts: ModelFacts) -> None:
        if not self._hello.done():
            self._hello.set_result(facts)

    def _note_death(self, died: Died) -> None:
        if self._died is not None:
            return
        self._died = died
        if not self._hello.done():
            self._hello.set_exception(EngineDied(died.message))
            self._hello.exception()  # seen: whoever waits gets it too
        if died.is_abrupt:
            for request in self._requests.values():
                log_lost(request, self._clock.now_s())
        self._fail_all(EngineDied(f"the engine stopped while this request ran ({died.message}); send it again"))
        self._on_death(died)

    def _fail_all(self, error: PenstockError) -> None:
        for items in self._streams.values():
            items.put_nowait(error)


def _refusal(refused: Refused) -> PenstockError:
    """The error that the engine's answer stands for."""
    if refused.code == Overloaded.code:
        return Overloaded(refused.message, reason=refused.reason, retry_after_s=refused.retry_after_s)
    return REFUSALS.get(refused.code, InvalidRequest)(refused.message, param=refused.param)
