"""The engine process: `python -m penstock.engine_main FOLDER PARENT`, options as JSON on standard input.

It ends with its parent: an engine without a front end serves nobody and would hold its memory for ever.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from penstock.core.errors import PenstockError, UserError
from penstock.engine.messages import Died, Hello, Phase
from penstock.engine.serving import serve_engine
from penstock.engine.zmq_link import ZmqEngineEnd
from penstock.launch import make_engine
from penstock.options import EngineOptions

PARENT_CHECK_S = 1.0
LOST_GRACE_S = 2.0
MAX_LINES = 10_000


def end_with_parent(parent: int) -> None:
    """Watch from a thread. parent: told, not asked for: it may be gone before we come to ask."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(3)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class NeverWaiting(logging.handlers.QueueHandler):
    """Hands lines to a thread that writes them: whoever reads standard error slowly must not hold up a step.

    When the reader is `MAX_LINES` behind, lines are dropped, and the next one that gets through says how many.
    """

    def __init__(self) -> None:
        self._lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_LINES)
        super().__init__(self._lines)
        self.setFormatter(logging.Formatter("%(message)s"))  # here, not in the writer: a record is queued as text
        self._n_dropped = 0
        self._writer = logging.handlers.QueueListener(self._lines, logging.StreamHandler())
        self._writer.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._n_dropped and not self._lines.full():
            n, self._n_dropped = self._n_dropped, 0
            lost = f"{n} log lines were dropped: standard error is read too slowly"
            self._lines.put_nowait(logging.LogRecord(record.name, logging.WARNING, "", 0, lost, (), None))
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._n_dropped += 1

    def close(self) -> None:
        self._writer.stop()
        super().close()


def main() -> int:
    """Serve until told to stop. Exit codes: 0 asked to, 1 a broken step, 2 options or model, 3 the parent is gone."""
    end_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front end decides what a signal means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, handlers=[NeverWaiting()])
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineOptions)
    link = ZmqEngineEnd(Path(sys.argv[1]))

    def end_soon(why: PenstockError) -> None:
        """A step that waits for a rank which is gone may never end, and an idle engine does not notice."""
        time.sleep(LOST_GRACE_S)  # if the loop can end by itself, with a record for every request, it has
        link.send(Died(str(why), is_abrupt=True))
        time.sleep(LOST_GRACE_S / 4)  # for the message to leave
        os._exit(1)

    try:
        engine = make_engine(options, lambda name, seconds: link.send(Phase(name, seconds)), end_soon)
    except PenstockError as wrong:
        is_user_error = isinstance(wrong, UserError)
        link.send(Died(str(wrong), is_user_error=is_user_error))
        link.close()
        return 2 if is_user_error else 1
    link.send(Hello(engine.scheduler.facts))
    try:
        serve_engine(engine, link)
    except Exception:  # noqa: BLE001  - logged where it broke, and the front end was told
        return 1
    finally:
        link.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
