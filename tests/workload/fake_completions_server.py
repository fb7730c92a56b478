"""A small OpenAI-like completions server on a real socket, with every misbehaviour that a client must survive."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


def normal(number: int, body: dict[str, Any]) -> str:
    return "ok"


@dataclass
class FakeServer:
    """`behaviour(number, body)` names what happens to the nth request; bodies are kept as they came."""

    behaviour: Callable[[int, dict[str, Any]], str] = normal
    models: Any = field(default_factory=lambda: {"data": [{"id": "tiny", "root": "tiny", "max_model_len": 512}]})
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response(self.models)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        kind = self.behaviour(number, body)
        if kind == "busy":
            error = {"error": {"message": "the queue is full", "type": "overloaded"}}
            return web.json_response(error, status=503, headers={"Retry-After": "2.5"})
        if kind == "bad":
            return web.Response(status=400, text="no such thing")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._stream(response, request, body, kind)
        return response

    async def _stream(
        self, response: web.StreamResponse, request: web.Request, body: dict[str, Any], kind: str
    ) -> None:
        async def event(payload: dict[str, Any], end: bytes = b"\n\n") -> None:
            await response.write(b"data: " + json.dumps(payload).encode() + end)

        n_tokens = 2 if kind == "short" else body["max_tokens"]
        end = b"\r\n\r\n" if kind == "crlf" else b"\n\n"
        await response.write(b": keep-alive\n\n")
        for place in range(n_tokens):
            if place == 1 and kind == "error":
                await event({"error": {"message": "out of memory", "code": 500}})
                return
            if place == 1 and kind == "garbage":
                await response.write(b"data: {not json\n\n")
                return
            if place == 1 and kind in ("cut", "silent_end"):
                if kind == "cut" and request.transport is not None:
                    request.transport.abort()
                return
            finish = "length" if place == n_tokens - 1 else None
            await event({"object": "text_completion", "choices": [{"text": "a", "finish_reason": finish}]}, end)
        if kind == "no_usage":
            return
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": n_tokens}
        usage["prompt_tokens_details"] = {"cached_tokens": 3}
        await event({"choices": [], "usage": usage, "metrics": {"queue_time_ms": 12.5}}, end)
        await response.write(b"data: [DONE]" + (b"" if kind == "no_last_newline" else b"\n\n"))


@asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[str]:
    """Serve on a free port of the loopback; gives the URL."""
    app = web.Application()
    app.router.add_get("/v1/models", server.list_models)
    app.router.add_post("/v1/completions", server.complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
