"""Bodies that are being read at a time share a limit; small ones never wait for large ones."""

from __future__ import annotations

import asyncio

import pytest

from penstock.api.errors import TooLarge
from penstock.api.http import Call
from penstock.api.limits import SMALL_BYTES, Bodies, Limits
from penstock.core.errors import Overloaded

LARGE = 4 * SMALL_BYTES


def call_of(parts: asyncio.Queue[bytes | None]) -> Call:
    async def receive() -> dict[str, object]:
        part = await parts.get()
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def send(message: object) -> None:
        raise AssertionError("nothing is sent while a body is read")

    return Call({"headers": [], "path": "/", "method": "POST"}, receive, send, 0.0)


def start(bodies: Bodies, *parts: bytes | None) -> tuple[asyncio.Queue[bytes | None], asyncio.Task[bytes]]:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    for part in parts:
        queue.put_nowait(part)
    return queue, asyncio.create_task(bodies.read(call_of(queue)))


def test_large_bodies_share_a_limit_that_small_ones_do_not_feel():
    async def run() -> None:
        bodies = Bodies(Limits(bodies_bytes=LARGE))
        held, first = start(bodies, b"x" * LARGE)
        await asyncio.sleep(0)
        _, second = start(bodies, b"y" * LARGE, None)
        with pytest.raises(Overloaded, match="large bodies"):
            await second
        _, small = start(bodies, b"z" * SMALL_BYTES, None)
        assert await small == b"z" * SMALL_BYTES
        held.put_nowait(None)
        assert len(await first) == LARGE
        _, third = start(bodies, b"y" * LARGE, None)
        assert len(await third) == LARGE
        assert bodies._held_bytes == 0

    asyncio.run(run())


def test_a_body_that_is_refused_or_given_up_holds_nothing():
    async def run() -> None:
        bodies = Bodies(Limits(body_bytes=LARGE))
        _, large = start(bodies, b"x" * LARGE, b"x")
        with pytest.raises(TooLarge):
            await large
        _, left = start(bodies, b"x" * LARGE)
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert bodies._held_bytes == 0

    asyncio.run(run())
