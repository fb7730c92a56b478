"""The asyncio client of an engine, against an engine end that the test plays."""

from __future__ import annotations

import asyncio
import json

import pytest

from penstock.core.errors import EngineDied, Overloaded, PenstockError
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.engine import text_stream
from penstock.engine.client import EngineClient
from penstock.engine.link import QueueLink
from penstock.engine.messages import Abort, Add, Died, Hello, Update, Updates
from penstock.engine.text_stream import TextStreams
from tests.engine.oracle import facts
from tests.engine.test_ledger import listening


class Played:
    """A client and the engine's end of its link."""

    def __init__(self, **options: object) -> None:
        link = QueueLink()
        self.client = EngineClient(link.front_end, None, **options)  # type: ignore[arg-type]
        self.engine = link.engine_end
        self._commands: list[object] = []
        self.engine.send(Hello(facts()))

    def say(self, *updates: Update) -> None:
        self.engine.send(Updates(list(updates)))

    async def hear(self) -> object:
        """The next command."""
        while not self._commands:
            self._commands += await asyncio.to_thread(self.engine.receive, 5.0)
        return self._commands.pop(0)

    async def __aenter__(self) -> Played:
        await self.client.wait_ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()


def request(name: str = "r", max_tokens: int = 100) -> Request:
    return Request(id=name, prompt=[1, 2, 3], sampling=SamplingParams(max_tokens=max_tokens))


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_reader_that_is_too_far_behind_is_cut_and_its_request_aborted():
    async def test():
        async with Played(max_unread_steps=8) as played:
            steps = played.client.generate(request())
            first = asyncio.ensure_future(anext(steps))
            assert isinstance(await played.hear(), Add)
            played.say(Update("r", 0, [5]))
            await first
            for token in range(100):
                played.say(Update("r", 0, [token]))
            assert await played.hear() == Abort("r")
            with pytest.raises(Overloaded, match="too slowly"):
                async for _ in steps:
                    pass
            assert played.client.n_open == 0

    run(test)


def test_a_reader_within_the_limit_gets_everything():
    async def test():
        async with Played(max_unread_steps=8) as played:
            steps = played.client.generate(request())
            first = asyncio.ensure_future(anext(steps))
            await played.hear()
            for token in range(6):
                played.say(Update("r", 0, [token]))
            played.say(Update("r", 0, [6], finish=FinishReason.LENGTH))
            got = [*await first]
            async for step in steps:
                got.extend(step)
            assert [token for delta in got for token in delta.tokens] == list(range(7))

    run(test)


def test_text_that_cannot_be_made_ends_its_own_request_only(monkeypatch):
    class Bad(text_stream._Sample):
        def push(self, update):
            if update.tokens == [13]:
                raise RuntimeError("no such token")
            return super().push(update)

    monkeypatch.setattr(text_stream, "_Sample", Bad)

    async def test():
        async with Played() as played:
            bad, good = (
                asyncio.ensure_future(anext(played.client.generate(request(name)))) for name in ("bad", "good")
            )
            await played.hear()
            await played.hear()
            played.say(Update("bad", 0, [13]), Update("good", 0, [7]))
            with pytest.raises(PenstockError, match="text"):
                await bad
            assert (await good)[0].tokens == (7,)
            assert await played.hear() == Abort("bad")

    run(test)


def test_a_request_that_cannot_be_sent_leaves_nothing_open(monkeypatch):
    async def test():
        async with Played() as played:

            def refuse(command: object) -> None:
                raise OverflowError("too large for the wire")

            with monkeypatch.context() as patched:
                patched.setattr(played.client._link, "send", refuse)
                with pytest.raises(OverflowError):
                    await anext(played.client.generate(request()))
            assert played.client.n_open == 0
            await played.client.drain(5.0)  # ends at once: nothing is open

    run(test)


def test_requests_of_a_killed_engine_have_their_records_and_those_of_a_broken_one_no_second():
    async def ask(died: Died) -> None:
        async with Played() as played:
            step = asyncio.ensure_future(anext(played.client.generate(request("lost"))))
            await played.hear()
            played.engine.send(died)
            with pytest.raises(EngineDied, match="killed"):
                await step

    with listening() as lines:
        run(lambda: ask(Died("killed")))
        assert lines == []
        run(lambda: ask(Died("killed", is_abrupt=True)))
        run(lambda: ask(Died("killed", is_abrupt=True)))
    assert [(json.loads(line)["id"], json.loads(line)["reason"]) for line in lines] == [("lost", "error")] * 2


def test_a_stream_that_is_closed_while_its_text_is_made_leaves_nothing_behind(monkeypatch):
    streams, one = TextStreams(None), request()

    class Leaving(text_stream._Sample):
        def push(self, update):
            streams.close(one)  # the event loop's thread does it meanwhile
            return super().push(update)

    monkeypatch.setattr(text_stream, "_Sample", Leaving)
    streams.open(one)
    streams.process([Update("r", 0, [1])])
    assert not [held for held in vars(streams).values() if isinstance(held, dict) and held]
