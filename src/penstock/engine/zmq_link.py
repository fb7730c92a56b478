"""The link between two processes on one machine: ZeroMQ over ipc, msgpack inside, no pickle.

The front end binds in a folder that only its user may enter; the engine connects. Two sockets, one per direction.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import zmq

from penstock.engine.messages import Command, Message, decode_command, decode_message, encode

NO_LIMIT = 0  # high-water mark: the engine's own queue limits bound what is under way
CLOSED = b""


def addresses(folder: Path) -> tuple[str, str]:
    """Where commands and messages go, below a private folder."""
    return f"ipc://{folder}/commands", f"ipc://{folder}/messages"


class ZmqFrontEnd:
    """Binds both sockets. `send` is locked, so any thread may call it."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        commands, messages = addresses(folder)
        self._lock = threading.Lock()
        self._out = self._context.socket(zmq.PUSH)
        self._in = self._context.socket(zmq.PULL)
        self._wake = self._context.socket(zmq.PUSH)
        for socket in (self._out, self._in, self._wake):
            socket.set_hwm(NO_LIMIT)
            socket.setsockopt(zmq.LINGER, 0)
        self._out.bind(commands)
        self._in.bind(messages)
        self._wake.connect(messages)
        self._is_closed = False

    def send(self, command: Command) -> None:
        # Never waits. Without a peer the engine is gone, and whoever watches its process says so to every stream.
        with self._lock, contextlib.suppress(zmq.Again):
            if not self._is_closed:
                self._out.send(encode(command), zmq.NOBLOCK)

    def inject(self, message: Message) -> None:
        """Deliver a message as if the engine had sent it, such as its death."""
        with self._lock:
            if not self._is_closed:
                self._wake.send(encode(message))

    def receive(self) -> Message | None:
        data = self._in.recv()
        if data == CLOSED:
            self._in.close()
            self._context.term()
            return None
        return decode_message(data)

    def close(self) -> None:
        """Wakes `receive`, which closes its own socket: a socket belongs to one thread."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._out.close()
            self._wake.setsockopt(zmq.LINGER, 1000)
            self._wake.send(CLOSED)
            self._wake.close()


class ZmqEngineEnd:
    """Connects both sockets; the loop receives, loop and beat thread send."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        commands, messages = addresses(folder)
        self._lock = threading.Lock()
        self._in = self._context.socket(zmq.PULL)
        self._out = self._context.socket(zmq.PUSH)
        for socket in (self._in, self._out):
            socket.set_hwm(NO_LIMIT)
            socket.setsockopt(zmq.LINGER, 1000)
        self._in.connect(commands)
        self._out.connect(messages)

    def receive(self, timeout_s: float) -> list[Command]:
        got: list[Command] = []
        if timeout_s > 0 and not self._in.poll(int(timeout_s * 1000)):
            return got
        while True:
            try:
                got.append(decode_command(self._in.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return got

    def send(self, message: Message) -> None:
        with self._lock:
            self._out.send(encode(message))

    def close(self) -> None:
        self._in.close()
        with self._lock:
            self._out.close()
        self._context.term()
