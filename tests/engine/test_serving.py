"""The loop that serves an engine: what it does while there is nothing to do."""

from __future__ import annotations

import threading

from penstock.core.request import Request, SamplingParams
from penstock.engine.link import QueueLink
from penstock.engine.loop import build_engine
from penstock.engine.messages import Add, Shutdown, Updates
from penstock.engine.serving import serve_engine
from penstock.policy.presets import build_policies
from tests.engine.oracle import OracleExecutor, continuation

PIECES = 5


class PreparingOracle(OracleExecutor):
    """Gets ready in pieces; again after each time that it had plans to run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prepared: list[int] = []  # plans that were submitted before each piece
        self.is_ready = threading.Event()

    def prepare(self) -> bool:
        assert not self.queue, "a plan is out"
        self.prepared.append(len(self.plans))
        is_more = self.prepared.count(len(self.plans)) < PIECES
        if not is_more:
            self.is_ready.set()
        return is_more


def test_an_executor_gets_ready_while_there_is_nothing_to_do_and_again_after_work():
    executor, link = PreparingOracle(), QueueLink()
    executor.allocate((64,))
    engine = build_engine(executor, (64,), build_policies())
    thread = threading.Thread(target=serve_engine, args=(engine, link.engine_end))
    thread.start()
    assert executor.is_ready.wait(10)
    assert executor.prepared == [0] * PIECES
    executor.is_ready.clear()
    request = Request(id="r", prompt=[1, 2, 3], sampling=SamplingParams(max_tokens=4))
    link.front_end.send(Add(request, 0.0))
    assert executor.is_ready.wait(10)
    link.front_end.send(Shutdown())
    thread.join(10)
    assert not thread.is_alive()
    n_plans = len(executor.plans)
    assert executor.prepared == [0] * PIECES + [n_plans] * PIECES, "it got ready between two plans of a request"
    tokens: list[int] = []
    while len(tokens) < 4:
        message = link.front_end.receive()
        if isinstance(message, Updates):
            tokens += [token for update in message.updates for token in update.tokens]
    assert tokens == continuation([1, 2, 3], 4)
