"""Split KV on a GPU against a fixed maximum: two kernels, as for `paged_attention`, whose second only adds.

The first writes for every part of the keys its sums and flags. The second adds the parts of a row; where a flag says
that they are of no use it computes the row again. So nothing is decided by the host, and a captured call serves any
scores. Where the keys are one part, there is nothing to join, and `paged_attention` runs.

Shape letters: T tokens, one per segment, H query heads, D head dim.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.chain import chain_options
from penstock.ops.paged_attention.triton import LEAST_PART_KEYS, MOST_HEAD_DIM, paged_attention, part_count
from penstock.ops.unified_attention import reference
from penstock.ops.unified_attention.fallbacks import Fallbacks
from penstock.ops.unified_attention.triton_kernels import add_parts, unified_parts
from penstock.ops.unified_max import UnifiedMax

LOG2_E = math.log2(math.e)
AGAIN_KEYS = 32


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
    """See `reference.unified_attention`. Products are of q's dtype, which float16 is too narrow for."""
    if not batch.is_decode or not _fits(q_THD, kv):
        return reference.unified_attention(q_THD, kv, batch, scale, unified, fallbacks, window_tokens, soft_cap)
    n_tokens, heads, head_dim = q_THD.shape
    kv_heads = kv.shape[3]
    longest_keys = min(max(batch.kv_lens_host), window_tokens or max(batch.kv_lens_host)) if n_tokens else 0
    n_parts = part_count(n_tokens * kv_heads, longest_keys) if longest_keys else 1
    if n_parts == 1:
        fallbacks.counts_2[1] += (batch.kv_lens > 0).sum() * heads
        return paged_attention(q_THD, kv, batch, scale, window_tokens, soft_cap)
    device = q_THD.device
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=device)
    lse_TH = torch.empty((n_tokens, heads), dtype=torch.float32, device=device)
    num = torch.empty((n_tokens, heads, n_parts, head_dim), dtype=torch.float32, device=device)
    den = torch.empty((n_tokens, heads, n_parts), dtype=torch.float32, device=device)
    flags = torch.empty((n_tokens, heads, n_parts), dtype=torch.uint8, device=device)
    tables_SB = batch.tables_SB if batch.tables_SB.stride(-1) == 1 else batch.tables_SB.contiguous()
    is_wide = head_dim > 128 or q_THD.dtype.itemsize > 2
    keys = q_THD, kv, tables_SB, batch.kv_lens
    strides = q_THD.stride(0), q_THD.stride(1), kv.stride(0), tables_SB.stride(0)
    numbers = float(scale), float(soft_cap or 0.0), *strides, window_tokens or 0
    constants = {
        "has_window": window_tokens is not None,
        "has_cap": soft_cap is not None,
        "is_strict": unified.is_strict,
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_TOKENS": batch.block_tokens,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "N_PARTS": n_parts,
        "LEAST_KEYS": LEAST_PART_KEYS,
        **chain_options(device, n_tokens),
    }
    phi, low, high = (bound * LOG2_E for bound in (unified.phi, unified.low, unified.high))
    unified_parts[(n_tokens, kv_heads, n_parts)](
        *keys,
        num,
        den,
        flags,
        phi,
        low,
        high,
        *numbers,
        **constants,
        BLOCK_G=max(16, triton.next_power_of_2(heads // kv_heads)),
        BLOCK_N=32 if is_wide else 64,
        num_warps=4,
        num_stages=2 if is_wide else 3,
    )
    add_parts[(n_tokens, heads)](
        *keys,
        num,
        den,
        flags,
        out_THD,
        lse_TH,
        fallbacks.counts_2,
        phi,
        *numbers,
        **constants,
        BLOCK_N=AGAIN_KEYS,
        num_warps=4,
    )
    return out_THD, lse_TH


def _fits(q_THD: Tensor, kv: Tensor) -> bool:
    is_laid_out = kv.is_contiguous() and q_THD.stride(2) == 1
    return is_laid_out and q_THD.shape[2] <= MOST_HEAD_DIM and q_THD.dtype is not torch.float16
