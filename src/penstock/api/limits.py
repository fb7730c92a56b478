"""What a request may weigh before anybody looks at what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from penstock.api.errors import HeadersTooLarge, TooLarge, TooSlow, WrongEncoding
from penstock.api.http import Call, ClientGone, Header
from penstock.core.errors import ConfigError, Overloaded

SMALL_BYTES = 64 << 10  # a body up to here is read whatever others send


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """body_bytes: of one request. bodies_bytes: of all that are being read at a time, beside the first `SMALL_BYTES` of
    each: large bodies are refused when there are too many, the usual ones never are. prompts: in one call; in_flight:
    how many of these the engine gets at a time.

    body_idle_s: longest pause between two parts of a body. inline_chars: shorter texts are tokenized on the event
    loop. 1000 characters take 0.2 ms there, less than a stream can notice; a thread would add the 0.03 ms of the way
    there and back, and two switches of the interpreter lock. A hundred times as much would hold up every stream.
    """

    body_bytes: int = 32 << 20
    bodies_bytes: int = 128 << 20
    header_bytes: int = 32 << 10
    headers: int = 100
    prompts: int = 1024
    in_flight: int = 64
    messages: int = 4096
    body_idle_s: float = 10.0
    inline_chars: int = 1000

    def __post_init__(self) -> None:
        for name in (
            "body_bytes",
            "bodies_bytes",
            "header_bytes",
            "headers",
            "prompts",
            "in_flight",
            "messages",
            "body_idle_s",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"the limit {name} is {getattr(self, name)}: give a positive number")


def check_headers(headers: Iterable[Header], limits: Limits) -> None:
    """Raise HeadersTooLarge for more than the limits have."""
    sizes = [len(name) + len(value) for name, value in headers]
    if len(sizes) > limits.headers or sum(sizes) > limits.header_bytes:
        raise HeadersTooLarge(
            f"the request has {len(sizes)} headers of {sum(sizes)} bytes; "
            f"at most {limits.headers} of {limits.header_bytes} bytes are taken"
        )


class Bodies:
    """Reads the bodies of an application's calls."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held_bytes = 0

    async def read(self, call: Call) -> bytes:
        """The whole body, counted while it comes. Raises TooLarge, TooSlow, WrongEncoding, Overloaded or ClientGone."""
        _check_announced(call, self._limits)
        body = bytearray()
        try:
            has_more = True
            while has_more:
                part, has_more = await _next_part(call, self._limits)
                self._held_bytes += _large_part(len(body) + len(part)) - _large_part(len(body))
                body += part
                self._check(len(body))
            return bytes(body)
        finally:
            self._held_bytes -= _large_part(len(body))

    def _check(self, n_bytes: int) -> None:
        if n_bytes > self._limits.body_bytes:
            raise _too_large(self._limits)
        if n_bytes > SMALL_BYTES and self._held_bytes > self._limits.bodies_bytes:
            raise Overloaded(
                "too many large bodies are being read; try again later", reason="bodies_bytes", retry_after_s=1.0
            )


def _large_part(n_bytes: int) -> int:
    return max(0, n_bytes - SMALL_BYTES)


def _check_announced(call: Call, limits: Limits) -> None:
    if call.headers.get("content-encoding", "identity") != "identity":
        raise WrongEncoding("compressed bodies are not taken: send it without Content-Encoding")
    announced = call.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > limits.body_bytes:
        raise _too_large(limits)


async def _next_part(call: Call, limits: Limits) -> tuple[bytes, bool]:
    """A part of the body, and whether more follows."""
    try:
        async with asyncio.timeout(limits.body_idle_s):
            message = await call.receive()
    except TimeoutError:
        raise TooSlow(f"no part of the body came for {limits.body_idle_s:g} s") from None
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


def _too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"the body is larger than {limits.body_bytes} bytes")
