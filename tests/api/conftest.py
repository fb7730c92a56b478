"""The real application on a real socket, over a scripted engine."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import uvloop
from fake_engine import FakeEngine

import penstock.bundled
from penstock.api.app import ApiConfig, App, create_app
from penstock.api.server import Server, listen, url_of
from penstock.text.tokenizer import Tokenizer

MODEL = "tiny"


@dataclass
class Running:
    """A server in a thread of its own."""

    url: str
    app: App
    engine: FakeEngine
    server: Server
    loop: asyncio.AbstractEventLoop

    def post(self, path: str, body: object, **kwargs: object) -> httpx.Response:
        return self.http.post(path, json=body, **kwargs)

    @property
    def http(self) -> httpx.Client:
        if not hasattr(self, "_http"):
            self._http = httpx.Client(base_url=self.url, timeout=20)
        return self._http

    def in_loop(self, call: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(call)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(Path(penstock.bundled.__file__).parent / "penstock-tiny")


def run_server(engine: FakeEngine, tokenizer: Tokenizer, config: ApiConfig) -> Iterator[Running]:
    app = create_app(engine, tokenizer, config)
    listener = listen("127.0.0.1", 0)
    server = Server(app, drain_timeout_s=5.0)
    is_ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        server._on_ready = lambda url: is_ready.set()
        await server.run_on(listener)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    url = url_of(listener)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_ready.wait(10)
        running = Running(url=url, app=app, engine=engine, server=server, loop=loops[0])
        yield running
        running.http.close()
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def session_server(tokenizer: Tokenizer) -> Iterator[Running]:
    config = ApiConfig(model_names=(MODEL, "org/alias"), root="org/tiny-root", has_vllm_names=True)
    yield from run_server(FakeEngine(tokenizer), tokenizer, config)


@pytest.fixture
def server(session_server: Running) -> Iterator[Running]:
    """The shared server, with an engine as new; whatever ran was given back at the end."""
    session_server.engine.reset()
    yield session_server
    assert session_server.engine._running == 0


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def start(tokenizer: Tokenizer) -> Iterator[Callable[..., Running]]:
    """Starts servers with a configuration of their own."""
    running: list[Iterator[Running]] = []

    def start_one(**options: object) -> Running:
        config = ApiConfig(model_names=(MODEL,), **options)
        running.append(run_server(FakeEngine(tokenizer), tokenizer, config))
        return next(running[-1])

    yield start_one
    for one in running:
        next(one, None)
