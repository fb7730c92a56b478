"""`penstock serve`: the HTTP process. It answers from its first moment, starts the engine process, and begins it anew
if it dies.

While no engine serves, /live is 200 and everything else 503 with the reason, so a client that comes early, or during a
restart, knows what to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from penstock.api.app import ApiConfig, create_app
from penstock.api.server import Server, listen
from penstock.core.errors import ConfigError, EngineDied, PenstockError
from penstock.engine.client import EngineClient
from penstock.engine.messages import Died, Phase
from penstock.launch import EngineProcess, as_user_error
from penstock.options import EngineOptions
from penstock.text.tokenizer import Tokenizer

log = logging.getLogger("penstock.serve")
MAX_RESTARTS = 3
RESTART_WINDOW_S = 60.0
RESTART_AFTER_S = 1.0
EXIT_ENGINE_DIED = 1
EXIT_USER_ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How the engine is shown to the outside."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    has_vllm_names: bool = False
    drain_timeout_s: float = 30.0
    allow_open: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, markup=False))


class Doorman:
    """The ASGI application that is there all the time; it passes requests on to the one of the running engine."""

    def __init__(self, *, has_keys: bool) -> None:
        self.has_keys = has_keys
        self.app: Any = None
        self.why_not = "the engine is starting"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._turn_away(scope, send)
        else:
            await send({"type": "websocket.close", "code": 1013})

    async def drain(self, timeout_s: float) -> None:
        if self.app is not None:
            await self.app.drain(timeout_s)

    def leave(self) -> None:
        """The engine behind the application is gone."""
        app, self.app = self.app, None
        if app is not None:
            app.close()

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        with contextlib.suppress(asyncio.CancelledError):  # an end without ceremony: uvicorn would log it as our fault
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    async def _turn_away(self, scope: Any, send: Any) -> None:
        is_live = scope["path"] == "/live"
        error = b'{"error":{"message":"%s","type":"server_error","param":null,"code":"not_ready"}}'
        body = b'{"status":"live"}' if is_live else error % self.why_not.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if not is_live:
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": 200 if is_live else 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Supervisor:
    """Keeps one engine process serving behind a doorman."""

    def __init__(
        self, engine: EngineOptions, options: ServeOptions, doorman: Doorman, tokenizer: Tokenizer, began_s: float
    ) -> None:
        self._engine_options = engine
        self._options = options
        self._doorman = doorman
        self._tokenizer = tokenizer
        self._began_s = began_s
        self._deaths_s: deque[float] = deque(maxlen=MAX_RESTARTS + 1)
        self.exit_code = 0

    async def run(self, first: EngineProcess) -> None:
        """Serve with one engine process after the other, until cancelled or until they die too often."""
        process = first
        while True:
            died: asyncio.Future[Died] = asyncio.get_running_loop().create_future()
            client = process.connect(self._tokenizer, self._show_phase, died.set_result)
            try:
                await self._serve(client, died)
            finally:
                self._doorman.leave()
                await process.close(client)
            if self.exit_code:
                return
            self._doorman.why_not = "the engine stopped and is being started again"
            await asyncio.sleep(RESTART_AFTER_S)
            process = EngineProcess(self._engine_options)

    async def _serve(self, client: EngineClient, died: asyncio.Future[Died]) -> None:
        try:
            facts = await client.wait_ready()
        except EngineDied:
            self._give_up(as_user_error(await died))
            return
        names = self._options.served_model_names or (self._engine_options.model_name,)
        config = ApiConfig(
            model_names=names,
            root=str(self._engine_options.model_path),
            api_keys=self._options.api_keys,
            has_vllm_names=self._options.has_vllm_names,
        )
        self._doorman.app = create_app(client, self._tokenizer, config)
        self._say(f"serving {names[0]} ({facts.n_layers} layers) after {time.monotonic() - self._began_s:.2f} s")
        reason = (await died).message
        self._deaths_s.append(time.monotonic())
        if len(self._deaths_s) > MAX_RESTARTS and self._deaths_s[-1] - self._deaths_s[0] < RESTART_WINDOW_S:
            self._give_up(EngineDied(f"{reason}; it died {len(self._deaths_s)} times within {RESTART_WINDOW_S:.0f} s"))
        else:
            self._say(f"{reason}: starting it again")

    def _give_up(self, error: PenstockError) -> None:
        self._say(f"penstock: {error}")
        self.exit_code = EXIT_ENGINE_DIED if isinstance(error, EngineDied) else EXIT_USER_ERROR

    def _show_phase(self, phase: Phase) -> None:
        self._say(phase.name if phase.seconds is None else f"{phase.name}: {phase.seconds:.2f} s")

    def _say(self, line: str) -> None:
        self._options.console.print(line, soft_wrap=True)


def serve(engine: EngineOptions, options: ServeOptions, began_s: float) -> int:
    """Serve until a signal; returns the exit code. Raises UserError for what can be known before the engine starts."""
    engine.build_policies()  # a wrong name is an error before anything is started
    engine.model_path  # noqa: B018  - so is a missing directory
    _raise_open_files()
    doorman = Doorman(has_keys=bool(options.api_keys))
    listener = listen(options.host, options.port, is_protected=doorman.has_keys or options.allow_open)
    process = EngineProcess(engine)  # it imports torch while we read the tokenizer
    try:
        tokenizer = Tokenizer.from_path(engine.model_path)
    except BaseException:
        process.abandon()
        raise
    supervisor = Supervisor(engine, options, doorman, tokenizer, began_s)

    server = Server(
        doorman,  # type: ignore[arg-type]
        options.drain_timeout_s,
        lambda url: options.console.print(f"listening on {url}"),
    )

    def end_server(_: object) -> None:
        server.should_exit = True  # the supervisor ends by itself only when it gave up

    async def run() -> int:
        engines = asyncio.create_task(supervisor.run(process))
        engines.add_done_callback(end_server)
        code = await server.run_on(listener)
        engines.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await engines
        return supervisor.exit_code or code

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def read_api_keys(file: Path | None, given: tuple[str, ...]) -> tuple[str, ...]:
    """Keys from the command line and from a file with one key a line. Raises ConfigError if that cannot be read."""
    if file is None:
        return given
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as missing:
        raise ConfigError(f"cannot read the API keys in {file}: {missing.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the API keys in {file} are not UTF-8 text") from None
    return given + tuple(line.strip() for line in lines if line.strip())


def _raise_open_files() -> None:
    """Each connection is an open file: allow as many as the system lets this user have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
