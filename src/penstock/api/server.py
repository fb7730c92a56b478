"""Runs the application: a socket, uvicorn on uvloop, and an orderly end.

The first SIGTERM or SIGINT drains: health turns to 503, new generation is refused, what runs may finish within the
limit. The second one ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from penstock.api.app import App
from penstock.api.protocol import Connection
from penstock.core.errors import ConfigError, PenstockError

logger = logging.getLogger(__name__)
KEEP_ALIVE_S = 60  # longer than clients keep idle connections, so that they close first
LAST_WORDS_S = 2  # after the drain: for what is written but not yet read
EXIT_OK, EXIT_CANNOT_START, EXIT_FORCED = 0, 1, 130
BACKLOG = 2048


def serve(
    app: App,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    drain_timeout_s: float = 30.0,
    allow_open: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> int:
    """Serve until a signal; returns the exit code of the process. on_ready: told the URL once it answers.

    allow_open: listen beyond this machine although there are no API keys.
    """
    try:
        listener = listen(host, port, is_protected=app.has_keys or allow_open)
    except ConfigError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve_on(app, listener, drain_timeout_s=drain_timeout_s, on_ready=on_ready))


def listen(host: str, port: int, *, is_protected: bool = False) -> socket.socket:
    """A listening socket. Raises ConfigError, in one line, if there cannot or should not be one.

    Needs nothing but the address, so that a port in use is known before a model is loaded. is_protected: keys are
    set, or an open server was asked for; without that only loopback addresses are listened on.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}. Check the host and the port.") from error
    if not (is_protected or ipaddress.ip_address(address[0]).is_loopback):
        raise ConfigError(
            f"{host} can be reached from other machines and no API key is set. Set one, or allow an open server."
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}. Stop what uses it, or take another port."
        ) from error


async def serve_on(
    app: App,
    listener: socket.socket,
    *,
    drain_timeout_s: float = 30.0,
    on_ready: Callable[[str], None] | None = None,
) -> int:
    """Serve on a socket in the running loop, which is the engine's too. In the main thread it answers to signals."""
    server = Server(app, drain_timeout_s, on_ready)
    return await server.run_on(listener)


class Server(uvicorn.Server):
    """uvicorn with another end: signals drain the engine first."""

    def __init__(self, app: App, drain_timeout_s: float, on_ready: Callable[[str], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_WORDS_S,
                backlog=BACKLOG,
            )
        )
        self._app = app
        self._drain_timeout_s = drain_timeout_s
        self._on_ready = on_ready
        self._draining: asyncio.Task[None] | None = None

    async def run_on(self, listener: socket.socket) -> int:
        with self._signals():
            await self.serve(sockets=[listener])
        return EXIT_FORCED if self.force_exit else EXIT_OK

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None and sockets:
            self._on_ready(url_of(sockets[0]))

    def stop(self) -> None:
        """What a signal does. Call it in the loop's thread."""
        if self._draining is None:
            logger.info("draining: up to %g s for what runs; a second signal ends at once", self._drain_timeout_s)
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self.force_exit = self.should_exit = True
            self._draining.cancel()

    async def _drain(self) -> None:
        try:
            await self._app.drain(self._drain_timeout_s)
        except PenstockError as error:
            logger.error("the engine could not be drained: %s", error)
        finally:
            self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ours are installed in `_signals`

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        installed = []
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self.stop)
            except (ValueError, RuntimeError):  # not the main thread: whoever runs us calls `stop`
                break
            installed.append(number)
        try:
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
