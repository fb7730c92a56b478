"""Raw clients against a real `penstock serve`: they say what they like, and leave when they like."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.integration.conftest import ServerProcess

SETTLE_S = 30.0


def request_bytes(body: object, *, length: int | None = None) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"
    return head.format(len(data) if length is None else length).encode() + data


class Raw:
    """Connections to one server. An answer is its status, or how it failed, and its bytes."""

    def __init__(self, server: ServerProcess) -> None:
        self._port = int(server.url.rsplit(":", 1)[1])

    async def ask(self, body: object) -> tuple[str, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request_bytes(body))
            answer = await reader.read()
            return answer[9:12].decode() or "nothing", answer
        except OSError as broken:
            return type(broken).__name__, b""
        finally:
            writer.close()

    async def ask_and_leave(self, body: object, after_s: float, sent_bytes: int | None = None) -> None:
        """Send a request, or its beginning, and break the connection after a while."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request_bytes(body)[:sent_bytes])
        await asyncio.sleep(after_s)
        writer.transport.abort()


def counters(server: ServerProcess) -> dict[str, float]:
    """The plain counters of /metrics, when nothing runs or waits any more."""
    deadline_s = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline_s:
        lines = server.get("/metrics")[1].decode().splitlines()
        values = dict(line.split() for line in lines if line.startswith("penstock_") and "{" not in line)
        now = {name.removeprefix("penstock_"): float(value) for name, value in values.items()}
        is_idle = now.get("requests_running") == now.get("requests_waiting") == 0  # none before the first beat
        if is_idle and now["requests_accepted_total"] == ended(now) == len(server.end_records):
            return now
        time.sleep(0.05)
    pytest.fail(f"it never came to rest, or lost a record of {len(server.end_records)}: {now}")


def ended(now: dict[str, float]) -> float:
    return sum(n for name, n in now.items() if name.startswith("requests_ended_"))
