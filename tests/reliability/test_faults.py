"""What must hold whatever clients, signals and the system do: short forms, the ledger checked at the end of each."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter

import psutil
import pytest

from tests.integration.conftest import ServerProcess, running_server
from tests.reliability.conftest import Raw, counters

pytestmark = pytest.mark.xdist_group("server")
CAP = 40


@pytest.fixture(scope="module")
def server():
    with running_server("--kv-memory", "32MiB", "--max-running", "16", "--max-queued-requests", str(CAP)) as running:
        yield running


def body_of(k: int, rng: random.Random) -> dict[str, object]:
    return {
        "prompt": rng.choice([f"def f{k}(", ["a", "b"], [[k % 200, 2], [3]]]),
        "max_tokens": rng.randint(1, 200),
        "ignore_eos": True,
        "stream": rng.random() < 0.5,
        "n": rng.choice([1, 1, 2]),
    }


def test_a_burst_is_answered_to_the_last_connection(server: ServerProcess):
    raw = Raw(server)

    async def burst(n: int) -> list[tuple[str, bytes]]:
        bodies = ({"prompt": f"def f{k}(", "max_tokens": 2, "ignore_eos": True} for k in range(n))
        return await asyncio.gather(*map(raw.ask, bodies))

    before = counters(server)  # before the warm-up: counters come with the engine's beat, so they lag
    warm_up = asyncio.run(burst(4))
    front = psutil.Process(server.process.pid)
    rss_bytes = front.memory_info().rss
    answers = asyncio.run(burst(500))
    statuses = Counter(status for status, _ in [*warm_up, *answers])
    assert set(statuses) <= {"200", "503"}, statuses
    assert all(b"retry-after: " in answer for status, answer in answers if status == "503")
    after = counters(server)
    name = "requests_refused_max_queued_requests_total"
    assert after[name] - before.get(name, 0) == statuses["503"]
    assert after["requests_accepted_total"] - before["requests_accepted_total"] == statuses["200"]
    assert front.memory_info().rss - rss_bytes < 100 << 20


def test_clients_that_leave_at_any_moment_leave_nothing_behind(server: ServerProcess):
    raw, rng = Raw(server), random.Random(1)

    async def one(k: int) -> None:
        await asyncio.sleep(rng.random() * 3)
        await raw.ask_and_leave(body_of(k, rng), rng.expovariate(3), rng.choice([None, None, None, 5, 100]))

    async def run() -> None:
        await asyncio.gather(*(one(k) for k in range(100)))

    asyncio.run(run())
    now = counters(server)
    assert now["requests_ended_abort_total"] > 0
    assert now["kv_used_frac"] == 0
    assert len({record["id"] for record in server.end_records}) == len(server.end_records)


def test_a_joined_stream_is_the_plain_answer_and_a_stop_string_cuts_it(server: ServerProcess):
    raw, rng = Raw(server), random.Random(2)

    async def text_of(body: dict[str, object]) -> str:
        _, answer = await raw.ask(body)
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"])

    async def streamed(body: dict[str, object]) -> str:
        _, answer = await raw.ask({**body, "stream": True})
        lines = answer.decode().splitlines()  # strict: no broken UTF-8
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return "".join(choice["text"] for event in events for choice in event["choices"])

    async def run() -> None:
        for seed in range(4):
            body: dict[str, object] = {"prompt": "ü你🙂", "max_tokens": 32, "temperature": 2.0, "seed": seed}
            body["ignore_eos"] = True
            whole = await text_of(body)
            assert await streamed(body) == whole
            start = rng.randrange(len(whole) - 3)
            stop = whole[start : start + 3]
            wanted = whole[: whole.index(stop)]
            assert await text_of({**body, "stop": [stop]}) == wanted
            assert await streamed({**body, "stop": [stop]}) == wanted

    asyncio.run(run())
    counters(server)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_server_that_is_stopped_answers_and_records_what_was_open(signals):
    timeout_s = "0.3" if signals == 1 else "60"
    with running_server("--kv-memory", "32MiB", "--drain-timeout-s", timeout_s) as server:
        raw = Raw(server)

        async def run() -> list[tuple[str, bytes]]:
            body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True}
            asked = asyncio.gather(*(raw.ask({**body, "stream": k % 2 == 0}) for k in range(6)))
            while json.loads(server.get("/load")[1])["requests_running"] != 6:
                await asyncio.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            while server.get("/ready")[0] == 200:
                await asyncio.sleep(0.01)
            if signals == 2:
                server.process.send_signal(signal.SIGTERM)
            return await asked

        answers = asyncio.run(run())
        assert all(answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for status, answer in answers if status == "200")
        assert Counter(status for status, _ in answers) == {"200": 3, "503": 3}
        assert server.process.wait(20) == (0 if signals == 1 else 130)
        server._reader.join(10)
        assert [record["reason"] for record in server.end_records] == ["abort"] * 6
        assert not [line for line in server.lines if "Traceback" in line]


def test_requests_of_a_killed_engine_are_answered_and_recorded():
    with running_server("--kv-memory", "32MiB") as server:
        raw = Raw(server)

        async def run() -> list[tuple[str, bytes]]:
            body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True}
            asked = asyncio.gather(*(raw.ask({**body, "stream": k % 2 == 0}) for k in range(6)))
            while json.loads(server.get("/load")[1])["requests_running"] != 6:
                await asyncio.sleep(0.05)
            os.kill(server.engine().pid, signal.SIGKILL)
            return await asked

        answers = asyncio.run(run())
        assert Counter(status for status, _ in answers) == {"200": 3, "503": 3}
        server.wait_for("serving ", n=2)
        assert [record["reason"] for record in server.end_records] == ["error"] * 6
