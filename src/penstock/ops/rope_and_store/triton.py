"""One pass: a program takes some heads of a token. A feature's partner in the rotation is read a second time.

Shape letters: T tokens, H heads of a program, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs
from penstock.ops.rms_norm.triton import scaled

PROGRAM_ELEMENTS, MANY_TOKENS = 512, 1024  # with many tokens, twice as many elements each


def rope_and_store(
    qkv_THD: Tensor,
    kv: Tensor,
    slots_T: Tensor,
    norm_ND: Tensor | None = None,
    eps: float = 0.0,
    is_centered: bool = False,
    cos_TR: Tensor | None = None,
    sin_TR: Tensor | None = None,
) -> Tensor:
    """See `reference.rope_and_store`."""
    n_tokens, n_heads, head_dim = qkv_THD.shape
    kv_heads = kv.shape[3]
    q_heads = n_heads - 2 * kv_heads
    assert qkv_THD.stride(2) == 1, "a head lies in one piece"
    assert kv.is_contiguous(), "the pool lies in one piece"
    q_TQD = torch.empty((n_tokens, q_heads, head_dim), dtype=qkv_THD.dtype, device=qkv_THD.device)
    if n_tokens == 0:
        return q_TQD
    block = triton.next_power_of_2(head_dim)
    heads = max(1, PROGRAM_ELEMENTS * (2 if n_tokens >= MANY_TOKENS else 1) // block)
    _rope_and_store[(n_tokens, triton.cdiv(n_heads, heads))](
        qkv_THD,
        q_TQD,
        kv,
        slots_T,
        norm_ND,
        cos_TR,
        sin_TR,
        qkv_THD.stride(0),
        qkv_THD.stride(1),
        kv.stride(0),
        eps,
        q_heads,
        kv_heads,
        head_dim,
        PAIRS=0 if cos_TR is None else cos_TR.shape[1],
        has_norm=norm_ND is not None,
        is_centered=is_centered,
        BLOCK=block,
        HEADS=heads,
        **chain_options(qkv_THD.device, n_tokens),
        num_warps=2,
    )
    return q_TQD


@triton.jit
def _rope_and_store(
    qkv,
    q_out,
    kv,
    slots,
    norm,
    cos,
    sin,
    token_stride,
    head_stride,
    values_at,
    eps,
    q_heads,
    kv_heads,
    head_dim,
    PAIRS: tl.constexpr,
    has_norm: tl.constexpr,
    is_centered: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    token = tl.program_id(0).to(tl.int64)
    head_H = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at_D = tl.arange(0, BLOCK)
    n_qk = q_heads + kv_heads
    is_here_HD = (head_H < n_qk + kv_heads)[:, None] & (at_D < head_dim)[None, :]
    is_turned_H = head_H < n_qk
    head_start_H1 = (qkv + token * token_stride + head_H * head_stride)[:, None]
    x_HD = tl.load(head_start_H1 + at_D[None, :], mask=is_here_HD, other=0.0)
    dtype: tl.constexpr = x_HD.dtype
    y_HD = x_HD
    if has_norm:
        wide_HD = x_HD.to(tl.float32)
        rstd_H1 = tl.rsqrt(tl.sum(wide_HD * wide_HD, axis=1) / head_dim + eps)[:, None]
        is_normed_HD = is_here_HD & is_turned_H[:, None]
        norm_start_H1 = (norm + head_H * head_dim)[:, None]
        weight_HD = tl.load(norm_start_H1 + at_D[None, :], mask=is_normed_HD, other=0.0)
        y_HD = scaled(wide_HD * rstd_H1, weight_HD, dtype, is_centered)
    if PAIRS > 0:
        partner_D = tl.where(at_D < PAIRS, at_D + PAIRS, tl.where(at_D < 2 * PAIRS, at_D - PAIRS, at_D))
        z_HD = tl.load(head_start_H1 + partner_D[None, :], mask=is_here_HD, other=0.0)
        if has_norm:
            partner_weight_HD = tl.load(norm_start_H1 + partner_D[None, :], mask=is_normed_HD, other=0.0)
            z_HD = scaled(z_HD.to(tl.float32) * rstd_H1, partner_weight_HD, dtype, is_centered)
        pair_D = tl.where(at_D < PAIRS, at_D, at_D - PAIRS)
        cos_D = tl.load(cos + token * PAIRS + pair_D, mask=at_D < 2 * PAIRS, other=1.0)
        sin_D = tl.load(sin + token * PAIRS + pair_D, mask=at_D < 2 * PAIRS, other=0.0)
        sin_D = tl.where(at_D < PAIRS, -sin_D, sin_D)
        y_HD = (y_HD.to(tl.float32) * cos_D[None, :] + z_HD.to(tl.float32) * sin_D[None, :]).to(dtype)
    y_HD = tl.where(is_turned_H[:, None], y_HD, x_HD)
    q_at_HD = (token * q_heads + head_H)[:, None] * head_dim + at_D[None, :]
    tl.store(q_out + q_at_HD, y_HD, mask=is_here_HD & (head_H < q_heads)[:, None])
    slot = tl.load(slots + token)
    stored_H = tl.where(is_turned_H, head_H - q_heads, head_H - n_qk)
    plane_H = tl.where(is_turned_H, 0, 1).to(tl.int64) * values_at
    kv_at_HD = (plane_H + (slot * kv_heads + stored_H) * head_dim)[:, None] + at_D[None, :]
    tl.store(kv + kv_at_HD, y_HD.to(kv.dtype.element_ty), mask=is_here_HD & (head_H >= q_heads)[:, None])
