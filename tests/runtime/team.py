"""An executor of several ranks whose processes are threads: plans still cross as bytes."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.core.executor import Ticket
from penstock.core.plan import Plan
from penstock.models.peers import Peers
from penstock.models.spec import Shard
from penstock.runtime.build import build_executor
from penstock.runtime.executor import TorchExecutor
from penstock.runtime.movers import Lane
from penstock.runtime.rank_messages import Fits, Submit, frame, read_to_rank
from penstock.runtime.ranks import LeadingExecutor
from tests.models.ranks import Table, ThreadPeers, in_threads


class ThreadRanks:
    """How a rank in a thread meets the others."""

    def __init__(self, shard: Shard, table: Table) -> None:
        self.shard = shard
        self._table = table

    def agree(self, fits: Fits) -> Fits:
        found = self._table.exchange(self.shard.rank, fits)
        agreed = found[0]
        for other in found[1:]:
            agreed = agreed.least(other)
        return agreed

    def connect(self, device: torch.device) -> Peers:
        return ThreadPeers(self.shard, self._table)


class Followers:
    """The other ranks. Each result is compared with what the first rank drew."""

    def __init__(self, executors: list[TorchExecutor], table: Table) -> None:
        self._executors = executors
        self._table = table
        self._out: deque[list[Ticket]] = deque()

    def send(self, plan: Plan) -> None:
        (told,) = read_to_rank(io.BytesIO(frame(Submit(plan))))
        assert isinstance(told, Submit)
        self._out.append([executor.submit(told.plan) for executor in self._executors])

    def note(self, tokens: npt.NDArray[np.int32]) -> None:
        for executor, ticket in zip(self._executors, self._out.popleft(), strict=True):
            np.testing.assert_array_equal(executor.collect(ticket).tokens, tokens)

    def check(self) -> None:
        """Threads do not get lost."""

    def why_lost(self) -> None:
        """As `check`."""

    def close(self) -> None:
        self._table.leave()
        for executor in self._executors:
            executor.close()


class Team(LeadingExecutor):
    """With what `build_executor` tells of its pools."""

    def __init__(self, own: TorchExecutor, followers: Followers) -> None:
        super().__init__(own, followers)
        self.n_blocks, self.n_host_blocks = own.n_blocks, own.n_host_blocks


def build_team(
    folder: Path, size: int, *, new_lane: Callable[[], Lane] | None = None, **options: Any
) -> Team | TorchExecutor:
    """As `build_executor`, for `size` ranks; one of them is no team."""

    def lane() -> Lane | None:
        return None if new_lane is None else new_lane()

    if size == 1:
        return build_executor(folder, lane=lane(), **options)
    table = Table(size)
    first, *others = in_threads(
        size, table, lambda shard: build_executor(folder, ranks=ThreadRanks(shard, table), lane=lane(), **options)
    )
    return Team(first, Followers(others, table))
