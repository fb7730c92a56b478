"""`penstock demo`: a server with the bundled model, two streamed answers, and bursty traffic with its report."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from penstock.core.errors import EngineDied, PenstockError
from penstock.core.request import NO_OBJECTIVE
from penstock.workload.demo import bursty_demo_trace
from penstock.workload.measure import summarise
from penstock.workload.progress import replay_with_bar
from penstock.workload.replay import ReplayOptions
from penstock.workload.report import render

console = Console(highlight=False)
START_TIMEOUT_S = 60.0


def run_demo(n_requests: int) -> int:
    """Returns the exit code: 0 if everything that was asked was answered."""
    with local_server() as url:
        console.rule("a completion: def quicksort(")
        _stream(
            f"{url}/v1/completions",
            {"prompt": "def quicksort(", "max_tokens": 128, "temperature": 0, "stop": ["\n\n\n"]},
        )
        console.rule("a chat answer")
        question = [{"role": "user", "content": "What does textwrap.dedent do?"}]
        _stream(f"{url}/v1/chat/completions", {"messages": question, "max_tokens": 96, "temperature": 0})
        console.rule(f"{n_requests} bursty requests")
        return _replay(url, n_requests)


@contextmanager
def local_server(*options: str, shown: Console = console) -> Iterator[str]:
    """A server with the bundled model on a free port of this machine, ready to answer; gives its URL.

    options: more of `penstock serve`. shown: where its start-up lines go. Raises EngineDied if it does not start.
    """
    # a session of its own: Ctrl-C is for whoever asks it, who then ends it
    server = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "serve", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        url = _wait_listening(server, shown)
        _wait_ready(url, server)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_listening(server: subprocess.Popen[str], shown: Console) -> str:
    """Show the server's start-up lines until it says where it listens, then let it go on in the background."""
    assert server.stderr is not None
    url, lines = "", []
    for line in server.stderr:
        lines.append(line.rstrip())
        shown.print(lines[-1], style="dim", markup=False, soft_wrap=True)
        if line.startswith("listening on "):
            url = line.split()[-1]
        if line.startswith("serving "):
            break
    if not url:
        raise EngineDied(f"the demo server did not start; it said: {' / '.join(lines[-5:])}")
    threading.Thread(target=lambda: [None for _ in server.stderr or ()], daemon=True).start()
    return url


def _wait_ready(url: str, server: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise EngineDied(f"the demo server was not ready within {START_TIMEOUT_S:.0f} s")


def _stream(url: str, body: dict[str, object]) -> None:
    """Print an answer as it comes."""
    data = json.dumps({**body, "stream": True}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    if "prompt" in body:
        console.print(body["prompt"], end="", markup=False)
    with urllib.request.urlopen(request, timeout=60) as response:
        for text in _texts(response):
            console.print(text, end="", markup=False)
    console.print()


def _texts(lines: Iterator[bytes]) -> Iterator[str]:
    for line in lines:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise PenstockError(f"the server answered: {event['error']['message']}")
        for choice in event.get("choices", ()):
            yield choice.get("text") or choice.get("delta", {}).get("content") or ""


def _replay(url: str, n_requests: int) -> int:
    """0 if every request of the trace was answered."""
    run = asyncio.run(replay_with_bar(bursty_demo_trace(n_requests), ReplayOptions(url=url, label="default"), console))
    summary = summarise(run, NO_OBJECTIVE)
    console.print(render(run, summary))
    return 0 if summary.ok == n_requests else 1
