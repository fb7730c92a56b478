"""Copies of blocks within the pools of a device: what forks share until they write to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from penstock.core.executor import StateSpec
from penstock.core.plan import BlockCopy
from penstock.runtime.transfer import send


def copy_blocks(copies: Sequence[BlockCopy], states: Sequence[StateSpec], pools: Sequence[Tensor]) -> None:
    """In order. pools: by layer; the block index is the second dimension."""
    for run in independent_copies(copies):
        layers = states[run[0].group].layers
        device = pools[layers[0]].device
        sources = send(np.array([copy.source for copy in run]), device)
        targets = send(np.array([copy.target for copy in run]), device)
        for layer in layers:
            pools[layer].index_copy_(1, targets, pools[layer].index_select(1, sources))


def independent_copies(copies: Sequence[BlockCopy]) -> Iterator[list[BlockCopy]]:
    """Runs of copies that may happen at once, in order: one group, and none touches what an earlier one wrote."""
    run: list[BlockCopy] = []
    written: set[int] = set()
    for copy in copies:
        if run and (copy.group != run[0].group or copy.source in written or copy.target in written):
            yield run
            run, written = [], set()
        run.append(copy)
        written.add(copy.target)
    if run:
        yield run
