"""One HTTP exchange, over the ASGI callables: what was asked, and the few ways to answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_TYPE = b"application/json"
STREAM_TYPE = b"text/event-stream; charset=utf-8"


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON_TYPE
    headers: tuple[Header, ...] = ()


def json_response(value: object, status: int = 200, headers: tuple[Header, ...] = ()) -> Response:
    return Response(msgspec.json.encode(value), status, JSON_TYPE, headers)


@dataclass(eq=False)
class Call:
    """One request and its answer.

    id: what the answer, the log and the engine call it. caller: whose key it came with; empty without keys.
    has_begun: the status is sent, an error must go into the stream. has_ended: all is sent; the server says
    "disconnect" from then on, whether the client left or not.
    """

    scope: Scope
    receive: Receive
    send: Send
    arrival_s: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    caller: str = ""
    extra_headers: tuple[Header, ...] = ()
    has_begun: bool = False
    has_ended: bool = False

    @property
    def path(self) -> str:
        return str(self.scope["path"])  # never rebuilt from the Host header: access is decided on it

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @functools.cached_property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name; of a repeated one the last."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.scope["headers"]}

    async def begin(self, status: int, content_type: bytes, headers: tuple[Header, ...] = ()) -> None:
        self.has_begun = True
        head = [(b"content-type", content_type), (b"x-request-id", self.id.encode()), *self.extra_headers, *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": head})

    async def write(self, data: bytes) -> None:
        """Send a part. Waits while the client reads more slowly than we write."""
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self.has_ended = True
        await self.send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, response: Response) -> None:
        length = (b"content-length", str(len(response.body)).encode())
        await self.begin(response.status, response.content_type, (length, *response.headers))
        await self.end(b"" if self.method == "HEAD" else response.body)

    @contextlib.asynccontextmanager
    async def while_client_is_there(self) -> AsyncIterator[None]:
        """Cancel the block when the client leaves. Raises ClientGone then. The body must have been read."""
        task = asyncio.current_task()
        assert task is not None
        is_gone = False

        async def watch() -> None:
            nonlocal is_gone
            while (await self.receive())["type"] != "http.disconnect":
                pass
            if not self.has_ended:
                is_gone = True
                task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not is_gone:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            watcher.cancel()
