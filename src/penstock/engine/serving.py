"""An engine behind a link: take commands, step, tell what happened; and a heart that beats beside it.

An error within one request refuses or ends that request. A broken step ends the engine: every open request is told so,
and the process that started it decides what comes next.
"""

from __future__ import annotations

import logging
import threading
import time

from penstock.core.errors import InvalidRequest, Overloaded, PenstockError
from penstock.core.sequence import FinishReason
from penstock.engine.link import EngineEnd
from penstock.engine.loop import Engine
from penstock.engine.messages import Abort, Add, Beat, Command, Died, Finish, Refused, Shutdown, Updates

log = logging.getLogger("penstock.engine")
IDLE_WAIT_S = 0.5
STALLED_WAIT_S = 0.005  # sequences wait, but the policies start none of them now
BEAT_EVERY_S = 0.25
SHORT_S, RESTS = 0.25, 10  # behind a longer piece of getting ready, so many times it: who comes seldom waits for one


class Heart(threading.Thread):
    """Beats while the process lives, and says how long the step under way takes already.

    So a stopped process is noticed at once, and a long step is not taken for a dead engine.
    """

    def __init__(self, link: EngineEnd) -> None:
        super().__init__(name="heart", daemon=True)
        self.counters: dict[str, float] = {}
        self.step_began_s: float | None = None
        self._link = link
        self._is_over = threading.Event()

    def run(self) -> None:
        while True:  # the first beat at once: whoever asks for the counters after the start gets them
            began_s = self.step_began_s
            age_s = 0.0 if began_s is None else time.monotonic() - began_s
            self._link.send(Beat(self.counters, age_s))
            if self._is_over.wait(BEAT_EVERY_S):
                return

    def stop(self) -> None:
        self._is_over.set()
        self.join()


def serve_engine(engine: Engine, link: EngineEnd) -> None:
    """Serve until Shutdown; what is open then gets its end record. Raises what broke a step, after the front end was
    told.
    """
    heart = Heart(link)
    heart.counters = dict(engine.counters())
    heart.start()
    reason = FinishReason.ABORT
    try:
        _serve(engine, link, heart)
    except Exception as broken:
        reason = FinishReason.ERROR
        log.exception("the engine cannot go on")
        link.send(Died(f"{type(broken).__name__} in a step" if not isinstance(broken, PenstockError) else str(broken)))
        raise
    finally:
        heart.stop()
        engine.close(reason)


def _serve(engine: Engine, link: EngineEnd, heart: Heart) -> None:
    counted_s = 0.0
    can_prepare, rest_s = True, IDLE_WAIT_S
    while True:
        if engine.has_work:
            wait_s = STALLED_WAIT_S if engine.is_stalled else 0.0
        else:
            wait_s = rest_s if can_prepare else IDLE_WAIT_S
        commands = link.receive(wait_s)
        for command in commands:
            if isinstance(command, Shutdown):
                return
            _obey(engine, link, command)
        now_s = heart.step_began_s = time.monotonic()
        if engine.has_work:
            updates = engine.step()
            can_prepare, rest_s = True, IDLE_WAIT_S
        else:
            updates = engine.take_updates()
            if can_prepare and not commands:
                can_prepare = engine.prepare()
                took_s = time.monotonic() - now_s
                rest_s = 0.0 if took_s < SHORT_S else RESTS * took_s
        heart.step_began_s = None
        if updates:
            link.send(Updates(updates))
        if now_s - counted_s >= BEAT_EVERY_S or not engine.has_work:
            heart.counters = dict(engine.counters())
            counted_s = now_s


def _obey(engine: Engine, link: EngineEnd, command: Command) -> None:
    match command:
        case Add(request, age_s):
            try:
                engine.add(request, age_s)
            except Overloaded as full:
                link.send(
                    Refused(request.id, full.code, str(full), reason=full.reason, retry_after_s=full.retry_after_s)
                )
            except InvalidRequest as wrong:
                link.send(Refused(request.id, wrong.code, str(wrong), param=wrong.param))
        case Abort(request_id):
            engine.abort(request_id)
        case Finish(request_id, index, output_tokens):
            engine.finish(request_id, index, output_tokens)
