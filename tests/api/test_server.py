"""Start, drain and end of the process."""

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from penstock.api.app import ApiConfig, create_app
from penstock.api.protocol import Connection
from penstock.api.server import EXIT_CANNOT_START, listen, serve
from penstock.core.errors import ConfigError

HERE = Path(__file__).parent
CHILD = """
import sys
sys.path.insert(0, {here!r})
from fake_engine import FakeEngine
from pathlib import Path
import penstock.bundled
from penstock.api.app import ApiConfig, create_app
from penstock.api.server import serve
from penstock.text.tokenizer import Tokenizer
tokenizer = Tokenizer.from_directory(Path(penstock.bundled.__file__).parent / "penstock-tiny")
engine = FakeEngine(tokenizer, hold_after=3, drain_waits=True)
app = create_app(engine, tokenizer, ApiConfig(model_names=("tiny",)))
sys.exit(serve(app, "127.0.0.1", 0, drain_timeout_s=20, on_ready=lambda url: print(url, flush=True)))
"""


@pytest.fixture
def child():
    code = CHILD.format(here=str(HERE))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_the_first_signal_drains_and_the_second_ends_at_once(child):
    process, url = child
    body = {"prompt": "x", "stream": True}
    with httpx.Client(base_url=url, timeout=20) as http, http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGTERM)
        while (ready := http.get("/ready")).status_code == 200:
            pass
        assert "draining" in ready.text
        refused = http.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["connection"] == "close"
        assert "retry-after" in refused.headers
        assert process.poll() is None  # the stream still runs
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


def test_a_drained_server_exits_in_order(child):
    process, url = child
    assert httpx.get(f"{url}/live").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stderr.read() == ""


def test_a_port_in_use_is_one_clear_line(tokenizer, capsys):
    from fake_engine import FakeEngine

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        app = create_app(FakeEngine(tokenizer), tokenizer, ApiConfig(model_names=("tiny",)))
        assert serve(app, "127.0.0.1", port) == EXIT_CANNOT_START
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"127.0.0.1:{port}" in message
    assert "in use" in message


def test_an_open_server_does_not_listen_to_the_world():
    with pytest.raises(ConfigError, match="no API key"):
        listen("0.0.0.0", 0)
    listen("0.0.0.0", 0, is_protected=True).close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "999.1.1.1"])
def test_a_host_that_is_none_is_one_clear_line(host):
    with pytest.raises(ConfigError, match="cannot listen"):
        listen(host, 0)


def test_routes_that_need_no_engine_answer_while_it_starts(tokenizer):
    from fake_engine import FakeEngine

    class Starting(FakeEngine):
        is_ready = False

        @property
        def facts(self):
            raise AssertionError("not known yet")

    engine = Starting(tokenizer, is_ready=False)
    app = create_app(engine, tokenizer, ApiConfig(model_names=("tiny",), has_vllm_names=True))

    async def ask() -> dict[str, int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return {path: (await http.get(path)).status_code for path in ("/live", "/ready", "/metrics", "/v1/models")}

    assert asyncio.run(ask()) == {"/live": 200, "/ready": 503, "/metrics": 200, "/v1/models": 503}


class _Transport:
    """Records how a connection ends."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def close(self) -> None:
        self.ended.append("close")

    def abort(self) -> None:
        self.ended.append("abort")

    def is_closing(self) -> bool:
        return bool(self.ended)

    def get_extra_info(self, name: str) -> None:
        return None


class _Timers:
    """Stands for an event loop: timers fire when told."""

    def __init__(self) -> None:
        self.calls: list = []

    def call_later(self, delay_s, call):
        handle = asyncio.TimerHandle(0.0, call, (), _Loop())
        self.calls.append((delay_s, handle))
        return handle

    def fire(self) -> None:
        for _, handle in self.calls:
            if not handle.cancelled():
                handle._run()


class _Loop:
    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle) -> None:
        pass


@pytest.fixture
def connection():
    import uvicorn
    from uvicorn.server import ServerState

    async def app(scope, receive, send) -> None:
        pass

    config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
    timers, transport = _Timers(), _Transport()
    connection = Connection(config, ServerState(), {}, timers)
    connection.connection_made(transport)
    return connection, timers, transport


def test_a_head_that_does_not_come_closes_the_connection(connection):
    one, timers, transport = connection
    one.data_received(b"GET /live HTTP/1.1\r\nHost:")
    timers.fire()
    assert transport.ended == ["close"]


def test_a_client_that_does_not_read_is_cut_and_one_that_does_is_not(connection):
    one, timers, transport = connection
    one._head_done()
    one.pause_writing()
    one.resume_writing()
    timers.fire()
    assert transport.ended == []
    one.pause_writing()
    timers.fire()
    assert transport.ended == ["abort"]
