"""A real `penstock serve` in processes of its own, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

START_TIMEOUT_S = 60.0


class ServerProcess:
    """One server. `lines` is what it printed."""

    def __init__(self, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", "serve", "--port", "0", "--threads", "1", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for("listening on ").split()[-1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_for(self, start: str, n: int = 1) -> str:
        """The n-th line that starts so; fails if the server ends before."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            found = [line for line in self.lines if line.startswith(start)]
            if len(found) >= n:
                return found[n - 1]
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no line {start!r}; the server printed {self.lines}")

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    def wait_until(self, path: str, status: int) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self.get(path)[0] == status:
                return
            time.sleep(0.02)
        raise AssertionError(f"{path} never answered {status}; the server printed {self.lines}")

    @property
    def end_records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines if line.startswith('{"event": "request_end"')]

    def engine(self) -> psutil.Process:
        """The engine process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()
            self._reader.join(timeout=10)
            if self.process.stderr is not None:
                self.process.stderr.close()


@contextmanager
def running_server(*arguments: str) -> Iterator[ServerProcess]:
    server = ServerProcess(*arguments)
    try:
        server.wait_until("/ready", 200)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server("--kv-memory", "64MiB", "--max-running", "32") as running:
        yield running


@pytest.fixture
def run_cli(tmp_path: Path):
    """Run the command line to its end: (exit code, standard output, standard error)."""

    def run(*arguments: str, input_text: str = "") -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "penstock.cli", *arguments],
            capture_output=True,
            text=True,
            input=input_text,
            timeout=120,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout, done.stderr

    return run
