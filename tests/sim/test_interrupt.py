"""Ctrl-C, as a real signal to a real process, ends a long run with the report of what there is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

# the command line, interrupted by its own hand when the fiftieth request has ended
INTERRUPTED = """
import os, signal, sys
from penstock.sim.fleet import Fleet

run = Fleet.run

def interrupted(self, trace, on_progress):
    def hook(n, at_s):
        on_progress(n, at_s)
        if n == 50:
            os.kill(os.getpid(), signal.SIGINT)
    run(self, trace, hook)

Fleet.run = interrupted
from penstock.cli import main
main()
"""
LONG = ("simulate", "--trace", "steady", "--rate-per-s", "5", "--duration-s", "2000", "--slo", "ttft=1,tpot=0.05")


def run(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's `&` ignores it
    )


def test_an_interrupted_simulation_prints_and_writes_what_had_ended(tmp_path):
    done = run(*LONG, "--out", "part.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "! interrupted: the figures are of what had ended" in done.stdout
    written = json.loads((tmp_path / "part.json").read_bytes())
    assert 50 <= len(written["records"]) < 100
    assert written["header"]["is_whole"] is False
    again = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "report", "part.json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "! interrupted" in again.stdout


@pytest.mark.parametrize("devices", [("h200",), ("h200", "a100")])
def test_an_interrupted_search_says_what_it_knows(tmp_path, devices):
    done = run(*LONG, "--search", *(word for name in devices for word in ("--device", name)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "! interrupted; 1 x h200 with default, within limits at nothing yet" in done.stdout
    assert "cheapest: not known yet" in done.stdout
