"""The C++ kernel of attention against a fixed maximum; see `cpp/attention.h`."""

from __future__ import annotations

from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.native import Unified
from penstock.ops.paged_attention.native import attend
from penstock.ops.unified_attention import reference
from penstock.ops.unified_attention.fallbacks import Fallbacks
from penstock.ops.unified_max import UnifiedMax


def unified_attention(
    q_THD: Tensor,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    unified: UnifiedMax,
    fallbacks: Fallbacks,
    window_tokens: int | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.unified_attention`."""
    found = None
    if batch.is_decode:
        found = attend(q_THD, kv, batch, scale, window_tokens, soft_cap, described(unified, fallbacks))
    if found is None:
        return reference.unified_attention(q_THD, kv, batch, scale, unified, fallbacks, window_tokens, soft_cap)
    return found


def described(unified: UnifiedMax, fallbacks: Fallbacks) -> Unified:
    """For the kernels; `fallbacks` must outlive it."""
    return Unified(
        phi=unified.phi,
        low=unified.low,
        high=unified.high,
        is_strict=unified.is_strict,
        counts=fallbacks.counts_2.data_ptr(),
    )
