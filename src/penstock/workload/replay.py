"""Joins the parts of a replay: asks the server what it serves, opens the connections, runs the schedule."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec

from penstock.workload.client import CompletionsClient, Counts
from penstock.workload.kinds import Pacing
from penstock.workload.prompts import DEFAULT_BLOCK_TOKENS, PromptStream
from penstock.workload.records import ReplayError, Run, RunHeader
from penstock.workload.schedule import BodyMaker, Schedule
from penstock.workload.trace import Trace

PROBE_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How to replay. model: None asks the server. vocab_start, vocab_stop: range of token ids in made prompts."""

    url: str
    model: str | None = None
    label: str = ""
    pacing: Pacing = Pacing.OPEN
    speed: float = 1.0
    seed: int = 0
    vocab_start: int = 3
    vocab_stop: int = 256
    request_timeout_s: float = 600.0
    max_total_s: float = 3600.0
    has_objectives: bool = True
    api_key: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


async def replay(
    trace: Trace, options: ReplayOptions, counts: Counts | None = None, stopped: asyncio.Event | None = None
) -> Run:
    """Replay a trace and return what the client saw. Raises ReplayError where there is no server to replay against.

    counts: kept up to date for whoever watches. stopped: setting it ends the replay early, with all its records.
    """
    url = options.url.rstrip("/").removesuffix("/v1")
    stopped = stopped or asyncio.Event()
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)  # open loop: the client never queues
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http:
        model = await find_model(http, url, options.model)
        prompts = PromptStream(
            seed=options.seed,
            vocab_start=options.vocab_start,
            vocab_stop=options.vocab_stop,
            block_tokens=trace.header.block_tokens or DEFAULT_BLOCK_TOKENS,
        )
        bodies = BodyMaker(model=model, prompts=prompts, extra=options.extra, has_objectives=options.has_objectives)
        started_utc = datetime.now(UTC).isoformat(timespec="seconds")
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        client = CompletionsClient(
            http=http,
            url=url,
            now_s=lambda: loop.time() - start_s,
            counts=counts or Counts(),
            request_timeout_s=options.request_timeout_s,
        )
        schedule = Schedule(
            trace=trace,
            sender=client,
            bodies=bodies,
            now_s=client.now_s,
            pacing=options.pacing,
            speed=options.speed,
            max_total_s=options.max_total_s,
            stopped=stopped,
        )
        records = await schedule.run()
    return Run(header=_header(trace, options, url, model, started_utc, not stopped.is_set()), records=records)


def _header(trace: Trace, options: ReplayOptions, url: str, model: str, started_utc: str, is_whole: bool) -> RunHeader:
    return RunHeader(
        trace=trace.header.name,
        url=url,
        model=model,
        label=options.label,
        pacing=options.pacing.value,
        seed=options.seed,
        started_utc=started_utc,
        trace_seed=trace.header.seed,
        trace_parameters=trace.header.parameters,
        trace_steps=(*trace.header.steps, *((f"speed {options.speed:g}",) if options.speed != 1 else ())),
        is_whole=is_whole,
    )


async def find_model(http: aiohttp.ClientSession, url: str, wanted: str | None) -> str:
    """The name to send: the wanted one, else the first that /v1/models lists."""
    try:
        async with http.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)) as response:
            status, body = response.status, await response.read()
    except aiohttp.InvalidURL as error:
        raise ReplayError(f"{url!r} is not the address of a server: give one like http://127.0.0.1:8000") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ReplayError(
            f"no server answers at {url} ({_cause(error)}). Start one with `penstock serve`, or correct --url."
        ) from error
    if wanted is not None:
        return wanted
    try:
        models = msgspec.json.decode(body, type=_Models).data if status == 200 else []
    except msgspec.DecodeError:
        models = []
    if not models:
        raise ReplayError(f"{url}/v1/models (HTTP {status}) names no model. Give one with --model.")
    return models[0].id


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {PROBE_TIMEOUT_S:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        code = error.os_error.errno
        return os.strerror(code) if code else str(error.os_error)
    return str(error) or type(error).__name__
