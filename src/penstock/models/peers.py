"""How ranks that run one model together exchange what each of them computed."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from penstock.models.spec import Shard


class Peers(Protocol):
    """The ranks of a model. All of them make the same calls in the same order, with tensors of the same shape."""

    @property
    def shard(self) -> Shard:
        """Which of them this one is."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's tensor, on each of them; `x` is overwritten."""
        ...

    def side_by_side(self, x_NV: Tensor) -> Tensor:
        """Every rank's columns, in the order of ranks, on each of them: bit for bit the same everywhere."""
        ...
