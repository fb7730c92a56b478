"""A rank that follows: it is told which plans to carry out, in a process of its own (`crew.py` has the theory)."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from penstock.core.executor import Executor, Ticket
from penstock.models.spec import Shard
from penstock.runtime.rank_messages import Checksum, Failed, Fits, FromRank, Setup, Submit, ToRank, frame, read_to_rank

if TYPE_CHECKING:
    import torch

    from penstock.runtime.peers import ProcessPeers

log = logging.getLogger(__name__)


class FirstRankGone(Exception):
    """The pipe from the first rank ended: there is nobody to follow."""


class Leader:
    """The first rank, as a following one sees it. `Ranks`, for `build_executor`."""

    def __init__(self, from_first: IO[bytes], to_first: IO[bytes]) -> None:
        """Waits for the `Setup`. Raises FirstRankGone without one."""
        self._messages: Iterator[ToRank] = read_to_rank(from_first)
        self._out = to_first
        setup = self._next()
        assert isinstance(setup, Setup), f"the first message says which rank this is, not {setup}"
        self.options = setup.options
        self.shard = Shard(setup.rank, setup.size)
        self._meeting = Path(setup.meeting)

    def agree(self, fits: Fits) -> Fits:
        self._send(fits)
        agreed = self._next()
        assert isinstance(agreed, Fits), f"the second message says what fits everywhere, not {agreed}"
        return agreed

    def connect(self, device: torch.device) -> ProcessPeers:
        from penstock.runtime.peers import ProcessPeers

        return ProcessPeers(self.shard, self._meeting, device)

    def fail(self, error: Exception, *, is_user_error: bool) -> None:
        """Say why this rank ends."""
        self._send(Failed(str(error) or repr(error), is_user_error))

    def clear(self) -> None:
        """Nobody meets any more: remove what the first rank, if it was killed, has left."""
        shutil.rmtree(self._meeting.parent, ignore_errors=True)

    def follow(self, executor: Executor) -> None:
        """Carry out plans until the first rank is gone. Raises what broke a step."""
        submitted: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        threading.Thread(target=self._collect, args=(executor, submitted), name="collect", daemon=True).start()
        for message in self._messages:
            assert isinstance(message, Submit), f"plans are all that follows, not {message}"
            submitted.put(executor.submit(message.plan))

    def _collect(self, executor: Executor, submitted: queue.SimpleQueue[Ticket]) -> None:
        """Results are read as on the first rank, so that what broke is seen and memory is given back."""
        drew = Checksum()
        while True:
            try:
                told = drew.add(executor.collect(submitted.get()).tokens)
            except Exception as error:
                log.exception("rank %d cannot go on", self.shard.rank)
                self.fail(error, is_user_error=False)
                return
            if told is not None:
                self._send(told)

    def _next(self) -> ToRank:
        message = next(self._messages, None)
        if message is None:
            raise FirstRankGone
        return message

    def _send(self, message: FromRank) -> None:
        self._out.write(frame(message))
        self._out.flush()
