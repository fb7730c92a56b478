"""The events of a stream, written by hand: what does not change from token to token is joined once per stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import msgspec

from penstock.api.logprobs import CompletionLogprobs, TokenNames, chat_logprobs
from penstock.api.tally import Tally
from penstock.api.translate import Job
from penstock.core.executor import TokenLogprobs
from penstock.core.sequence import FinishReason
from penstock.engine.outputs import OutputDelta

DONE = b"data: [DONE]\n\n"
FINISH: Mapping[FinishReason | None, bytes] = {None: b"null"} | {
    reason: msgspec.json.encode(reason.value) for reason in FinishReason
}
_encode = msgspec.json.Encoder().encode


class Chunks(ABC):
    """Writes the events of one call. Subclasses know the form of a choice."""

    kind = b""

    def __init__(self, job: Job, created_s: int, names: TokenNames, tally: Tally) -> None:
        self._job = job
        self._names = names
        self._tally = tally
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            _encode(job.id),
            self.kind,
            created_s,
            _encode(job.model),
        )
        self._begun: set[int] = set()

    def events(self, prompt: int, delta: OutputDelta) -> bytes:
        """What a delta of a prompt's sample becomes: one event, after the opening one of its choice where there is one.

        A delta without token, text and end becomes nothing: clients count events as tokens.
        """
        if not (delta.tokens or delta.text or delta.finish_reason):
            return b""
        index = prompt * self._job.n + delta.index
        if index in self._begun:
            return self._event(self._choice(index, delta))
        self._begun.add(index)
        return self._first(index, prompt, delta)

    def tail(self) -> bytes:
        """The usage event, if it was asked for, and the end mark."""
        if not self._job.has_usage:
            return DONE
        usage, timings = _encode(self._tally.usage()), _encode(self._tally.timings())
        return b'%b],"usage":%b,"metrics":%b}\n\n%b' % (self._head, usage, timings, DONE)

    def _event(self, choice: bytes) -> bytes:
        if self._job.has_running_usage:
            return b'%b%b],"usage":%b}\n\n' % (self._head, choice, _encode(self._tally.usage()))
        return b"%b%b]}\n\n" % (self._head, choice)

    def _end_of(self, delta: OutputDelta) -> bytes:
        if delta.finish_reason is None:
            return b'"finish_reason":null}'
        return b'"finish_reason":%b,"stop_reason":%b}' % (FINISH[delta.finish_reason], _encode(delta.stop))

    @abstractmethod
    def _first(self, index: int, prompt: int, delta: OutputDelta) -> bytes: ...

    @abstractmethod
    def _choice(self, index: int, delta: OutputDelta) -> bytes: ...


class CompletionChunks(Chunks):
    """Clients count every event with a choice as a token, so none is sent for the end alone."""

    kind = b"text_completion"

    def __init__(self, job: Job, created_s: int, names: TokenNames, tally: Tally) -> None:
        super().__init__(job, created_s, names, tally)
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._prompt_entries: dict[int, tuple[TokenLogprobs | None, ...]] = {}

    def events(self, prompt: int, delta: OutputDelta) -> bytes:
        if delta.prompt_logprobs is not None:
            self._prompt_entries[prompt] = delta.prompt_logprobs  # may come before the first token
        return super().events(prompt, delta)

    def _first(self, index: int, prompt: int, delta: OutputDelta) -> bytes:
        if self._job.echo is None:
            return self._event(self._choice(index, delta))
        return self._event(self._with_prompt(index, prompt, delta))

    def _choice(self, index: int, delta: OutputDelta) -> bytes:
        logprobs = self._part(index, delta.tokens, delta.logprobs) if self._job.has_logprobs else b"null"
        return self._write(index, delta.text, logprobs, delta)

    def _with_prompt(self, index: int, prompt: int, delta: OutputDelta) -> bytes:
        assert self._job.echo is not None
        text, tokens, entries = echoed(self._job, prompt, delta, self._prompt_entries.get(prompt))
        logprobs = self._part(index, tokens, entries) if self._job.has_logprobs else b"null"
        return self._write(index, text, logprobs, delta)

    def _write(self, index: int, text: str, logprobs: bytes, delta: OutputDelta) -> bytes:
        end = self._end_of(delta)
        return b'{"index":%d,"text":%b,"logprobs":%b,%b' % (index, _encode(text), logprobs, end)

    def _part(self, index: int, tokens: tuple[int, ...], entries: tuple[TokenLogprobs | None, ...]) -> bytes:
        if index not in self._logprobs:
            self._logprobs[index] = CompletionLogprobs(self._names)
        return _encode(self._logprobs[index].part(tokens, entries))


class ChatChunks(Chunks):
    """The role goes first, in an event of its own, which clients do not count."""

    kind = b"chat.completion.chunk"

    def _first(self, index: int, prompt: int, delta: OutputDelta) -> bytes:
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
        return self._event(role) + self._event(self._choice(index, delta))

    def _choice(self, index: int, delta: OutputDelta) -> bytes:
        logprobs = _encode(chat_logprobs(self._names, delta.logprobs)) if self._job.has_logprobs else b"null"
        end = self._end_of(delta)
        return b'{"index":%d,"delta":{"content":%b},"logprobs":%b,%b' % (index, _encode(delta.text), logprobs, end)


def echoed(
    job: Job, prompt: int, delta: OutputDelta, prompt_entries: tuple[TokenLogprobs | None, ...] | None
) -> tuple[str, tuple[int, ...], tuple[TokenLogprobs | None, ...]]:
    """Text, tokens and probabilities of a choice's first part, with the prompt before it.

    For a call that only scores, the one token that was made is left out.
    """
    assert job.echo is not None
    tokens, entries = tuple(job.requests[prompt].prompt), prompt_entries
    if entries is None:
        entries = (None,)  # a prompt of one token has nothing to tell; for any other the lengths will not match
    if job.is_scoring:
        return job.echo[prompt], tokens, entries
    return job.echo[prompt] + delta.text, tokens + delta.tokens, entries + delta.logprobs
