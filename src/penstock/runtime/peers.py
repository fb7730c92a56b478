"""Ranks as processes of one machine: NCCL between GPUs, gloo over the loopback between CPUs.

Groups are objects here, not the process-wide one of `torch.distributed`: an `LLM` in somebody's program, which may have
a group of its own, leaves that alone, and two of them do not meet.

Shape letters: N rows that want logits, V a rank's share of the vocabulary, G ranks.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penstock.core.errors import ConfigError
from penstock.models.spec import Shard

STUCK_S = 600.0  # a rank that waits so long for the others gives up; one that died is noticed at once (`crew.py`)
LOOPBACK = "127.0.0.1"


class ProcessPeers:
    """One rank of a group. Sums may be captured in a CUDA graph, as the steps that they belong to are."""

    def __init__(self, shard: Shard, meeting: Path, device: torch.device) -> None:
        """Wait until every rank has come. meeting: a file that does not exist yet, the same for all of them.

        Raises ConfigError if torch was built without NCCL, or without gloo.
        """
        self._shard = shard
        c10d = _distributed("gloo" if device.type == "cpu" else "nccl")
        public: Any = torch.distributed
        store = public.FileStore(str(meeting), shard.size)
        self._group = (_gloo if device.type == "cpu" else _nccl)(c10d, store, shard)
        self._sum, self._gather = c10d.AllreduceOptions(), c10d.AllgatherOptions()
        self._sum.asyncOp = self._gather.asyncOp = False  # on the stream of the step, without events around it
        self.sum(torch.zeros(1, device=device))  # whoever connects at the first call does so now

    @property
    def shard(self) -> Shard:
        return self._shard

    def sum(self, x: Tensor) -> Tensor:
        """See `Peers.sum`."""
        x = x.contiguous()
        _wait(self._group.allreduce([x], self._sum))
        return x

    def side_by_side(self, x_NV: Tensor) -> Tensor:
        """See `Peers.side_by_side`."""
        found_GNV = x_NV.new_empty((self._shard.size, *x_NV.shape))
        _wait(self._group.allgather([list(found_GNV)], [x_NV.contiguous()], self._gather))
        return found_GNV.transpose(0, 1).flatten(1)

    def abort(self) -> None:
        """Let whoever waits for a rank that is gone go on; what they computed is worthless. From any thread."""
        self._group.abort()


def _distributed(backend: str) -> Any:
    """Torch's groups, with what has no public name: it is typed nowhere."""
    if not torch.distributed.is_available() or not torch.distributed.is_backend_available(backend):
        raise ConfigError(f"this torch was built without {backend}, over which ranks talk; use --tensor-parallel 1")
    from torch.distributed import distributed_c10d

    return distributed_c10d


def _gloo(c10d: Any, store: Any, shard: Shard) -> Any:
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=LOOPBACK)]  # the host's name may lead anywhere
    options._threads = 1
    options._timeout = timedelta(seconds=STUCK_S)
    return c10d.ProcessGroupGloo(store, shard.rank, shard.size, options)


def _nccl(c10d: Any, store: Any, shard: Shard) -> Any:
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=STUCK_S)
    return c10d.ProcessGroupNCCL(store, shard.rank, shard.size, options)


def _wait(work: Any) -> None:
    """For the result, on a CPU; on a GPU this only orders the stream behind it. None: it is ordered already."""
    if work is not None:
        work.wait()
