"""How commands get to an engine and messages back: a pair of queues in one process, or sockets between two."""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from penstock.engine.messages import Command, Message


class EngineEnd(Protocol):
    """The engine's side. `send` may be called from its beat thread too."""

    def receive(self, timeout_s: float) -> list[Command]:
        """Commands that have come; waits up to `timeout_s` for the first."""
        ...

    def send(self, message: Message) -> None: ...


class FrontEnd(Protocol):
    """The front end's side. `send` may be called from any thread, `receive` from one."""

    def send(self, command: Command) -> None: ...

    def receive(self) -> Message | None:
        """The next message, however long it takes; None when the link was closed."""
        ...

    def close(self) -> None: ...


class QueueLink:
    """Both ends within one process."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.engine_end: EngineEnd = _QueueEngineEnd(self._commands, self._messages)
        self.front_end: FrontEnd = _QueueFrontEnd(self._commands, self._messages)


class _QueueEngineEnd:
    def __init__(self, commands: queue.SimpleQueue[Command], messages: queue.SimpleQueue[Message | None]) -> None:
        self._commands = commands
        self._messages = messages

    def receive(self, timeout_s: float) -> list[Command]:
        got: list[Command] = []
        try:
            if timeout_s > 0:
                got.append(self._commands.get(timeout=timeout_s))
            while True:
                got.append(self._commands.get_nowait())
        except queue.Empty:
            return got

    def send(self, message: Message) -> None:
        self._messages.put(message)


class _QueueFrontEnd:
    def __init__(self, commands: queue.SimpleQueue[Command], messages: queue.SimpleQueue[Message | None]) -> None:
        self._commands = commands
        self._messages = messages
        self._is_closed = threading.Event()

    def send(self, command: Command) -> None:
        self._commands.put(command)

    def receive(self) -> Message | None:
        return None if self._is_closed.is_set() else self._messages.get()

    def close(self) -> None:
        self._is_closed.set()
        self._messages.put(None)
