"""Ranks of one model as threads of a test: their sums without processes and sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from penstock.models.peers import Peers
from penstock.models.sharding import Shard

Result = TypeVar("Result")


class ThreadPeers:
    """One rank among threads; `shared` holds what each rank brought."""

    def __init__(self, shard: Shard, shared: list[Tensor], barrier: threading.Barrier) -> None:
        self.shard = shard
        self._shared = shared
        self._barrier = barrier

    def sum(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._exchange(x)).sum(0))

    def side_by_side(self, x_NV: Tensor) -> Tensor:
        return torch.cat(self._exchange(x_NV), -1)

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._shared[self.shard.rank] = x.clone()
        self._barrier.wait(timeout=60)
        all_of_them = list(self._shared)
        self._barrier.wait(timeout=60)
        assert len({found.shape for found in all_of_them}) == 1
        return all_of_them


def on_ranks(size: int, work: Callable[[Peers], Result]) -> list[Result]:
    """Run `work` on every rank, each in a thread; their results, by rank."""
    shared, barrier = [torch.empty(0)] * size, threading.Barrier(size)

    def run(rank: int) -> Result:
        try:
            return work(ThreadPeers(Shard(rank, size), shared, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))
