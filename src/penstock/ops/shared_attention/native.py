"""Shared runs in C++; see `cpp/attention.h`. A token gets the bits that it would get alone: nothing is merged."""

from __future__ import annotations

from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.paged_attention.native import attend
from penstock.ops.shared_attention import cpu


def shared_attention(
    q_THD: Tensor, kv: Tensor, batch: SegmentBatch, scale: float, soft_cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.shared_attention`."""
    assert batch.shared is not None
    found = attend(q_THD, kv, batch, scale, None, soft_cap, None, batch.shared)
    return cpu.shared_attention(q_THD, kv, batch, scale, soft_cap) if found is None else found
