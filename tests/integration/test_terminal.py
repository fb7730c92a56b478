"""`penstock complete` and `penstock chat` on a terminal, where a person presses Ctrl-C."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.xdist_group("server")
TIMEOUT_S = 60.0


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            assert time.monotonic() < deadline_s, f"no {text!r} in {self.seen!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")

    def write(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Read to the end; the exit code."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._ours, 65536).decode(errors="replace")
                except OSError:  # nobody holds the other end any more
                    return self.process.wait(TIMEOUT_S)
        raise AssertionError(f"it does not end: {self.seen!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal():
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        started.append(Terminal(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_ctrl_c_ends_a_chat_that_waits_for_a_question(terminal):
    chat = terminal("chat", "--kv-memory", "32MiB", "--max-tokens", "4")
    chat.wait_for("you>")
    chat.write("hello\n")
    chat.wait_for("tokens, first after")
    chat.seen = chat.seen.split("tokens, first after")[1]
    chat.wait_for("you>")
    chat.write("\x03")
    assert chat.end() == 130


def test_ctrl_c_ends_a_completion(terminal):
    complete = terminal("complete", "def f(", "--kv-memory", "32MiB", "--max-tokens", "2000", "--temperature", "1")
    complete.wait_for("def f(")
    complete.write("\x03")
    assert complete.end() == 130
    assert "stopped" in complete.seen


@pytest.mark.parametrize("after", ["listening on", "serving "])
def test_ctrl_c_ends_a_server_at_any_time_without_a_stack_trace(terminal, after):
    server = terminal("serve", "--port", "0", "--kv-memory", "32MiB")
    server.wait_for(after)
    server.write("\x03")
    assert server.end() == 0
    assert "Traceback" not in server.seen
