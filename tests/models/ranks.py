"""Ranks of one model as threads of a test: their sums without processes and sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from penstock.models.peers import Peers
from penstock.models.spec import Shard

Result = TypeVar("Result")
PATIENCE_S = 60.0


class Table:
    """Where ranks lay down what they have, and take what all of them have."""

    def __init__(self, size: int) -> None:
        self._laid: list[Any] = [None] * size
        self._barrier = threading.Barrier(size)

    def exchange(self, rank: int, thing: Any) -> list[Any]:
        self._laid[rank] = thing
        self._barrier.wait(PATIENCE_S)
        everything = list(self._laid)
        self._barrier.wait(PATIENCE_S)
        return everything

    def leave(self) -> None:
        """Nobody waits for a rank that will not come."""
        self._barrier.abort()


class ThreadPeers:
    """One rank among threads."""

    def __init__(self, shard: Shard, table: Table) -> None:
        self.shard = shard
        self._table = table

    def sum(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._exchange(x)).sum(0))

    def side_by_side(self, x_NV: Tensor) -> Tensor:
        return torch.cat(self._exchange(x_NV), -1)

    def _exchange(self, x: Tensor) -> list[Tensor]:
        found = self._table.exchange(self.shard.rank, x.clone())
        assert len({tensor.shape for tensor in found}) == 1
        return found


def in_threads(size: int, table: Table, work: Callable[[Shard], Result]) -> list[Result]:
    """Run `work` for every rank, each in a thread; their results, by rank."""

    def run(rank: int) -> Result:
        try:
            return work(Shard(rank, size))
        except BaseException:
            table.leave()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


def on_ranks(size: int, work: Callable[[Peers], Result]) -> list[Result]:
    """Run `work` with the peers of every rank."""
    table = Table(size)
    return in_threads(size, table, lambda shard: work(ThreadPeers(shard, table)))
