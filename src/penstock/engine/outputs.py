"""What a front end receives, and the protocol through which it talks to an engine, wherever that runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from penstock.core.executor import ModelFacts, TokenLogprobs
from penstock.core.request import Request
from penstock.core.sequence import FinishReason, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStats:
    """Where one sample's time went, on the engine's clock; None where it never got that far.

    queue_s: arrival to first plan. ttft_s: arrival to first token. e2e_s: arrival to end.
    """

    queue_s: float | None
    ttft_s: float | None
    e2e_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int

    @classmethod
    def of(cls, seq: Sequence, now_s: float) -> RequestStats:
        """Of a sequence that ends now."""

        def since_arrival(at_s: float | None) -> float | None:
            return None if at_s is None else at_s - seq.arrival_s

        return cls(
            queue_s=since_arrival(seq.first_planned_s),
            ttft_s=since_arrival(seq.first_token_s),
            e2e_s=now_s - seq.arrival_s,
            prompt_tokens=len(seq.request.prompt),
            cached_tokens=seq.cached_tokens,
            output_tokens=seq.output_tokens,
            preemptions=seq.preemptions,
        )

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDelta:
    """What is new for one sample of a request.

    text: characters that are final: whole UTF-8, and no part of a possible stop string. tokens, logprobs: the ids
    behind it (ids can come before their text, which may wait for more). finish_reason: set on the last delta of the
    sample, together with `stats`. stop: the stop string or id that ended it. prompt_logprobs: once, on the first delta
    of sample 0, one entry per prompt token; the first has nothing before it and is None.
    """

    index: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | int | None = None
    stats: RequestStats | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    error: str | None = None


class AsyncEngine(Protocol):
    """An engine as an asyncio front end sees it; one implementation runs in this process, one across a socket."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def is_ready(self) -> bool:
        """The step loop turns, admission is open, and it is not draining."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[tuple[OutputDelta, ...], None]:
        """Run a request; each item is what one step brought for it.

        Leaving the iteration early (break, cancellation, aclose) aborts the request and frees its memory. Raises
        InvalidRequest, PromptTooLong, NeverFits, Overloaded before the first item; EngineDied at any time.
        """
        ...

    def counters(self) -> Mapping[str, float]:
        """The engine's latest gauges and counters, by plain name (see docs/operations.md)."""
        ...

    async def drain(self, timeout_s: float) -> None:
        """Take no new request, let the running ones end, abort what is left after `timeout_s`."""
        ...

    async def close(self) -> None: ...
