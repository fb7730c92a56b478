"""`penstock serve` as a client and an operator meet it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter

import httpx
import openai
import pytest

from penstock import LLM, SamplingParams
from tests.integration.conftest import running_server

pytestmark = pytest.mark.xdist_group("server")
PROMPTS = [f"def function_{k}(" for k in range(16)]


async def stream_one(client: httpx.AsyncClient, prompt: str, max_tokens: int) -> tuple[str, list[dict]]:
    """The joined text of a stream, and its events."""
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    events = []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                events.append(json.loads(line[6:]))
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    return text, events


def expected_texts(max_tokens: int) -> dict[str, str]:
    with LLM("penstock-tiny", kv_memory="64MiB", threads=1) as llm:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return {prompt: output.outputs[0].text for prompt, output in zip(PROMPTS, outputs, strict=True)}


def test_64_concurrent_streams_lose_and_duplicate_nothing(server):
    wanted = expected_texts(max_tokens=24)
    n_before = len(server.end_records)

    async def run():
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as client:
            return await asyncio.gather(*(stream_one(client, PROMPTS[k % 16], 24) for k in range(64)))

    for k, (text, events) in enumerate(asyncio.run(run())):
        assert text == wanted[PROMPTS[k % 16]]
        assert events[-1]["choices"] == []
        assert events[-1]["usage"]["completion_tokens"] == 24
        assert [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]] == ["length"]
    server.wait_until("/ready", 200)
    records = Counter(record["id"] for record in server.end_records[n_before:])
    assert len(records) == 64
    assert set(records.values()) == {1}


def test_the_official_client_completes_chats_and_streams(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["penstock-tiny"]
        done = client.completions.create(
            model="penstock-tiny", prompt="import", max_tokens=8, temperature=0, logprobs=2
        )
        assert done.usage is not None
        assert done.usage.completion_tokens == 8
        assert done.choices[0].logprobs is not None
        messages = [{"role": "user", "content": "Who are you?"}]
        chat = client.chat.completions.create(model="penstock-tiny", messages=messages, max_tokens=8, temperature=0)  # type: ignore[arg-type]
        streamed = client.chat.completions.create(
            model="penstock-tiny", messages=messages, max_tokens=8, temperature=0, stream=True
        )  # type: ignore[arg-type]
        pieces = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
        assert "".join(pieces) == chat.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model="penstock-tiny", prompt=[1] * 5000, max_tokens=1)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="gpt-7", prompt="x")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_memory(server, stream):
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": stream}

    async def run():
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            task = asyncio.create_task(client.post("/v1/completions", json=body))
            while json.loads((await client.get("/load")).content)["requests_running"] == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while json.loads((await client.get("/load")).content)["requests_running"]:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert server.end_records[-1]["reason"] == "abort"
    assert server.end_records[-1]["output_tokens"] < 2000


def test_metrics_count_what_was_served(server):
    server.wait_until("/metrics", 200)
    text = server.get("/metrics")[1].decode()
    assert "penstock_" in text
    assert "vllm:" not in text


def test_a_killed_engine_is_told_to_clients_and_started_again():
    with running_server("--kv-memory", "32MiB") as server:
        got: list[str] = []

        def read() -> None:
            body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
                got.extend(answer.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        while not got:
            time.sleep(0.01)
        os.kill(server.engine().pid, signal.SIGKILL)
        reader.join(timeout=30)
        events = [line for line in got if line]
        assert events[-1] == "data: [DONE]"
        assert "engine" in json.loads(events[-2][6:])["error"]["message"]
        server.wait_for("serving ", n=2)
        server.wait_until("/ready", 200)
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=60)
        assert answer.status_code == 200


def test_a_stopped_engine_is_not_ready_and_comes_back():
    with running_server("--kv-memory", "32MiB") as server:
        engine = server.engine()
        engine.suspend()
        try:
            server.wait_until("/ready", 503)
            assert server.get("/live")[0] == 200
        finally:
            engine.resume()
        server.wait_until("/ready", 200)


def test_sigterm_lets_streams_end_and_leaves_no_process():
    with running_server("--kv-memory", "32MiB") as server:
        engine = server.engine()
        lines: list[str] = []

        def read() -> None:
            body = {"prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
                lines.extend(answer.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        while not lines:
            time.sleep(0.01)
        assert server.stop() == 0
        reader.join(timeout=30)
        assert "data: [DONE]" in lines
        assert '"finish_reason":"length"' in "".join(lines)
        assert not engine.is_running()
