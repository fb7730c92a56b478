"""An engine that follows a script: same contract, no model. Its text is what `reply` says, token by token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from penstock.core.errors import PenstockError
from penstock.core.executor import ModelFacts, StateKind, StateSpec, TokenLogprobs
from penstock.core.request import Request
from penstock.core.sequence import FinishReason
from penstock.engine.outputs import OutputDelta, RequestStats
from penstock.text.detokenizer import Detokenizer, StopStrings
from penstock.text.tokenizer import Tokenizer

MAX_MODEL_TOKENS = 256
REPLY = "Hello, wörld! 你好 🙂 This is a reply."


def facts_of(tokenizer: Tokenizer) -> ModelFacts:
    kv = StateSpec(name="kv", kind=StateKind.PAGED, layers=(0,), block_tokens=16, block_bytes=1024)
    return ModelFacts(
        name="scripted",
        n_layers=1,
        vocab_size=tokenizer.vocab_size,
        max_model_tokens=MAX_MODEL_TOKENS,
        stop_token_ids=frozenset(tokenizer.eos_token_ids),
        states=(kv,),
        weight_bytes=0,
        kernels=(("rms_norm", "native"), ("experts", "cpu")),
    )


@dataclass
class FakeEngine:
    """refuse: raised before the first item. fail_after, hold_after: raise `failure` or wait for ever after so many
    steps. end: the reason of the end where nothing else ends it (a length is found by itself).
    """

    tokenizer: Tokenizer
    reply: str = REPLY
    refuse: PenstockError | None = None
    failure: Exception | None = None
    fail_after: int | None = None
    hold_after: int | None = None
    end: FinishReason = FinishReason.STOP
    is_ready: bool = True
    requests: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    abort_seen: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    drained: list[float] = field(default_factory=list)
    drain_waits: bool = False
    most_at_once: int = 0
    _running: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def facts(self) -> ModelFacts:
        return facts_of(self.tokenizer)

    def reset(self) -> None:
        """Forget the script and what was seen."""
        self.__init__(self.tokenizer)  # type: ignore[misc]

    def counters(self) -> Mapping[str, float]:
        return {
            "requests_running": float(self._running),
            "requests_waiting": 0.0,
            "kv_used_frac": 0.25,
            "kv_blocks": 64.0,
            "preemptions_total": 3.0,
            "requests_refused_max_queued_requests_total": 2.0,
        }

    async def drain(self, timeout_s: float) -> None:
        self.drained.append(timeout_s)
        while self.drain_waits and self._running:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        return None

    async def generate(self, request: Request) -> AsyncIterator[tuple[OutputDelta, ...]]:
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        is_over = False
        try:
            samples = [_Sample(self, request, index) for index in range(request.sampling.n)]
            step = 0
            while not all(sample.is_over for sample in samples):
                await self._pause(step)
                yield tuple(sample.next() for sample in samples if not sample.is_over)
                step += 1
            is_over = True
        finally:
            self._running -= 1
            self._idle.set()
            if not is_over:
                self.aborted.append(request.id)
                self.abort_seen.set()

    async def _pause(self, step: int) -> None:
        if step == self.hold_after:
            self.held.set()
            await asyncio.Event().wait()
        if step == self.fail_after:
            assert self.failure is not None
            raise self.failure
        await asyncio.sleep(0)


class _Sample:
    def __init__(self, engine: FakeEngine, request: Request, index: int) -> None:
        sampling = request.sampling
        self.index, self.is_over = index, False
        self._engine, self._request, self._sampling = engine, request, sampling
        room = MAX_MODEL_TOKENS - len(request.prompt)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        reply = engine.tokenizer.encode(engine.reply, add_special_tokens=False)
        self._tokens = reply[:limit]
        self._end = FinishReason.LENGTH if len(reply) > limit else engine.end
        self._at = 0
        self._detokenizer = Detokenizer(engine.tokenizer, request.prompt[-4:], sampling.skip_special_tokens)
        self._stops = StopStrings(sampling.stop, sampling.include_stop_str_in_output)

    def next(self) -> OutputDelta:
        token = self._tokens[self._at]
        self._at += 1
        is_last = self._at == len(self._tokens)
        new = self._detokenizer.push((token,)) + (self._detokenizer.flush() if is_last else "")
        text, hit = self._stops.push(new)
        if is_last and hit is None:
            text += self._stops.flush()
        self.is_over = is_last or hit is not None
        sampling = self._sampling
        wants_prompt = sampling.prompt_logprobs is not None and self.index == 0 and self._at == 1
        return OutputDelta(
            index=self.index,
            text=text,
            tokens=(token,),
            logprobs=() if sampling.logprobs is None else (entry(token, sampling.logprobs),),
            finish_reason=None if not self.is_over else FinishReason.STOP if hit else self._end,
            stop=hit,
            stats=self._stats() if self.is_over else None,
            prompt_logprobs=self._prompt_entries(sampling.prompt_logprobs or 0) if wants_prompt else None,
            error="the script says so" if self.is_over and self._end is FinishReason.ERROR else None,
        )

    def _prompt_entries(self, n: int) -> tuple[TokenLogprobs | None, ...] | None:
        rest = self._request.prompt[1:]
        return (None, *(entry(token, n) for token in rest)) if rest else None  # as the engine does

    def _stats(self) -> RequestStats:
        return RequestStats(
            queue_s=0.010,
            ttft_s=0.030,
            e2e_s=0.030 + 0.005 * (self._at - 1),
            prompt_tokens=len(self._request.prompt),
            cached_tokens=2,
            output_tokens=self._at,
            preemptions=0,
        )


def entry(token: int, n: int) -> TokenLogprobs:
    """The chosen token is always the second most likely one."""
    top = ((token + 1, -0.5), (token, -1.5), *((token + k, -1.5 - k) for k in range(2, 21)))
    return TokenLogprobs(token=token, logprob=-1.5, rank=2, top=top[:n])
