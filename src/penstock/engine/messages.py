"""What crosses between a front end and an engine, in one process or two. Msgpack on the wire, never pickle."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from penstock.core.executor import ModelFacts, TokenLogprobs
from penstock.core.request import Request
from penstock.core.sequence import FinishReason
from penstock.core.wire import decode_tokens, encode_tokens
from penstock.engine.outputs import RequestStats

WIRE_VERSION = 1


class Add(msgspec.Struct, tag=True, frozen=True):
    """Serve a request. `age_s`: how long ago it arrived; clocks of two processes need not agree."""

    request: Request
    age_s: float = 0.0


class Abort(msgspec.Struct, tag=True, frozen=True):
    """End every sample of a request; nobody waits for it any more."""

    request_id: str


class Finish(msgspec.Struct, tag=True, frozen=True):
    """A stop string was found in the text of a sample: end it; `output_tokens` of its tokens count."""

    request_id: str
    index: int
    output_tokens: int


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Abort what runs and end the engine."""


Command = Add | Abort | Finish | Shutdown


class Update(msgspec.Struct, tag=True, array_like=True):
    """What one step brought for one sample; `finish` and `stats` on the last one."""

    request_id: str
    index: int
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    finish: FinishReason | None = None
    stop_token: int | None = None
    stats: RequestStats | None = None
    error: str | None = None


class Refused(msgspec.Struct, tag=True, frozen=True):
    """A request that was not accepted; `code` is that of the error class."""

    request_id: str
    code: str
    message: str
    param: str | None = None
    reason: str = ""
    retry_after_s: float = 0.0


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The engine serves from now on."""

    facts: ModelFacts
    version: int = WIRE_VERSION


class Phase(msgspec.Struct, tag=True, frozen=True):
    """A phase of the start took so long; or a line about what fits."""

    name: str
    seconds: float | None = None


class Beat(msgspec.Struct, tag=True, frozen=True):
    """The step loop turns; `counters` by plain name. `step_age_s`: how long the step under way takes already."""

    counters: dict[str, float]
    step_age_s: float = 0.0


class Died(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot go on. `is_user_error`: the message says what to change, no trace is needed. `is_abrupt`: it
    could not even write the end records of its open requests.
    """

    message: str
    is_user_error: bool = False
    is_abrupt: bool = False


class Updates(msgspec.Struct, tag=True, frozen=True):
    """All updates of one step."""

    updates: list[Update]


Message = Updates | Refused | Hello | Phase | Beat | Died


Decoded = TypeVar("Decoded")


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_tokens)
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command, dec_hook=decode_tokens)
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message, dec_hook=decode_tokens)


def encode(message: Command | Message) -> bytes:
    return _encoder.encode(message)


def decode_command(data: bytes) -> Command:
    """Raises msgspec.DecodeError for anything but a command."""
    return _decode(_commands, data)


def decode_message(data: bytes) -> Message:
    """Raises msgspec.DecodeError for anything but a message."""
    return _decode(_messages, data)


def _decode(decoder: msgspec.msgpack.Decoder[Decoded], data: bytes) -> Decoded:
    try:
        return decoder.decode(data)
    except (RecursionError, UnicodeDecodeError) as wrong:  # msgspec lets these two out
        raise msgspec.DecodeError(str(wrong)) from None
