"""From token updates to text deltas, for every open sample of a front end.

Text is final when it is emitted: whole characters, no part of a possible stop string. A stop string ends a sample here,
before the engine knows: the engine is told how many tokens count, and the last delta waits for its end record.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.core.executor import TokenLogprobs
from penstock.core.request import Request
from penstock.core.sequence import FinishReason
from penstock.engine.messages import Finish, Update
from penstock.engine.outputs import OutputDelta
from penstock.text.detokenizer import Detokenizer, StopStrings
from penstock.text.tokenizer import Tokenizer

PROMPT_TAIL_TOKENS = 8


class _Sample:
    """The text of one sample so far."""

    __slots__ = (
        "_detokenizer",
        "_held",
        "_includes_stop",
        "_stops",
        "_wants_prompt_logprobs",
        "n_tokens",
        "stopped_at",
    )

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        sampling = request.sampling
        tail = request.prompt[-PROMPT_TAIL_TOKENS:].tolist()
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, tail, sampling.skip_special_tokens)
        self._wants_prompt_logprobs = sampling.prompt_logprobs is not None
        self._includes_stop = sampling.include_stop_str_in_output
        self._stops = StopStrings(sampling.stop, sampling.include_stop_str_in_output)
        self._held = OutputDelta(index=0)
        self.stopped_at: int | None = None  # outputs up to and with the stop string
        self.n_tokens = 0

    def push(self, update: Update) -> OutputDelta | None:
        """The delta of an update; None while the sample waits for its end record."""
        n_before = self.n_tokens
        self.n_tokens += len(update.tokens)
        if self.stopped_at is not None:
            return self._last(update, self._held) if update.finish is not None else None
        text, taken = self._text(update, n_before)
        delta = OutputDelta(
            index=update.index,
            text=text,
            tokens=tuple(update.tokens[:taken]),
            logprobs=tuple(update.logprobs[:taken]),
            prompt_logprobs=self._prompt_logprobs(update, n_before),
            error=update.error,
        )
        if update.finish is not None:
            return self._last(update, delta)
        if self.stopped_at is not None:
            self._held = delta
            return None
        return delta

    def _prompt_logprobs(self, update: Update, n_before: int) -> tuple[TokenLogprobs | None, ...] | None:
        """One entry per prompt token, with the first output; nothing comes before the first token."""
        is_first = self._wants_prompt_logprobs and update.index == 0 and n_before == 0
        return (None, *update.prompt_logprobs) if is_first else None

    def _text(self, update: Update, n_before: int) -> tuple[str, int]:
        """Certain text of the new tokens, and how many of them count."""
        if self._detokenizer is None:
            return "", len(update.tokens)
        parts: list[str] = []
        silent = update.stop_token if not self._includes_stop else None
        for k, token in enumerate(update.tokens, start=1):
            if token == silent and k == len(update.tokens):
                break  # an id that ends the text is not part of it
            emit, hit = self._stops.push(self._detokenizer.push((token,)))
            parts.append(emit)
            if hit is not None:
                self.stopped_at = n_before + k
                return "".join(parts), k
        if update.finish is not None:
            parts.append(self._stops.push(self._detokenizer.flush())[0])
            parts.append(self._stops.flush())
        return "".join(parts), len(update.tokens)

    def _last(self, update: Update, delta: OutputDelta) -> OutputDelta:
        hit = self._stops.hit
        return OutputDelta(
            index=update.index,
            text=delta.text,
            tokens=delta.tokens,
            logprobs=delta.logprobs,
            prompt_logprobs=delta.prompt_logprobs,
            finish_reason=FinishReason.STOP if hit is not None else update.finish,
            stop=hit if hit is not None else update.stop_token,
            stats=update.stats,
            error=update.error or delta.error,
        )


class TextStreams:
    """All open samples. `process` runs in one thread; `open` and `close` may run in another."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._samples: dict[tuple[str, int], _Sample] = {}

    def open(self, request: Request) -> None:
        """Expect updates of a request from now on."""
        for index in range(request.sampling.n):
            self._samples[request.id, index] = _Sample(request, self._tokenizer)

    def close(self, request: Request) -> None:
        """Nobody waits for the request any more; later updates of it are passed over."""
        for index in range(request.sampling.n):
            self._samples.pop((request.id, index), None)

    def process(self, updates: Iterable[Update]) -> tuple[list[tuple[str, OutputDelta]], list[Finish]]:
        """The deltas of a step by request id, and the samples that a stop string ended."""
        deltas: list[tuple[str, OutputDelta]] = []
        finishes: list[Finish] = []
        for update in updates:
            sample = self._samples.get((update.request_id, update.index))
            if sample is None:
                continue
            was_stopped = sample.stopped_at is not None
            delta = sample.push(update)
            if delta is not None:
                deltas.append((update.request_id, delta))
            elif not was_stopped and sample.stopped_at is not None:
                finishes.append(Finish(update.request_id, update.index, sample.stopped_at))
        return deltas, finishes
