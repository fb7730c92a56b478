"""The engine process's own log: whole lines, as they were meant, however slowly they are read."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from penstock.engine_main import NeverWaiting
logging.basicConfig(level=logging.INFO, handlers=[NeverWaiting()])
logging.getLogger("penstock.requests").info("%s", '{"event": "request_end"}')
"""


def test_a_log_line_is_the_message_and_nothing_before_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stderr == '{"event": "request_end"}\n'
    assert done.returncode == 0


def test_an_engine_whose_parent_is_gone_before_it_looks_ends(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-m", "penstock.engine_main", str(tmp_path), str(gone.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as engine:  # it waits for its options, and none come
        try:
            assert engine.wait(60) == 3
        finally:
            engine.kill()
