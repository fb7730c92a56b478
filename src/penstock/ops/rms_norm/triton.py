"""One pass over each row, the residual added on the way; narrow rows share a program.

Shape letters: R rows, D features, H rows of one token that have weights of their own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs
from penstock.ops.rms_norm import reference

PROGRAM_ELEMENTS = 1024  # at least
MOST_FEATURES = 16384


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, is_centered: bool = False
) -> tuple[Tensor, Tensor]:
    """See `reference.rms_norm`."""
    features = x.shape[-1]
    per_token = x.shape[1] if x.dim() == 3 else 1
    has_own_weights = x.dim() == 3 and weight.shape == x.shape[1:]
    is_ours = x.dim() in (2, 3) and (weight.dim() == 1 or has_own_weights) and features <= MOST_FEATURES
    if not is_ours or x.stride(-1) != 1 or not weight.is_contiguous():
        return reference.rms_norm(x, weight, eps, residual, is_centered)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x
    if residual is not None:
        residual = residual.contiguous()
        total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n_rows = x.numel() // features if features else 0
    if n_rows == 0:
        return out, total
    block = triton.next_power_of_2(features)
    rows = max(1, PROGRAM_ELEMENTS // block)
    _rms_norm[(triton.cdiv(n_rows, rows),)](
        x,
        residual,
        weight,
        out,
        total,
        n_rows,
        per_token,
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        features if has_own_weights else 0,
        eps,
        features,
        has_residual=residual is not None,
        is_centered=is_centered,
        BLOCK=block,
        ROWS=rows,
        **chain_options(x.device, len(x)),
        num_warps=max(1, min(8, rows * block // 512)),
    )
    return out, total


@triton.jit
def scaled(normed, weight, dtype: tl.constexpr, is_centered: tl.constexpr):
    """With the roundings of the reference."""
    if is_centered:
        return (normed * (1.0 + weight.to(tl.float32))).to(dtype)
    return (normed.to(dtype).to(tl.float32) * weight.to(tl.float32)).to(dtype)


@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm(
    x,
    residual,
    weight,
    out,
    total,
    n_rows,
    per_token,
    token_stride,
    row_stride,
    weight_stride,
    eps,
    features,
    has_residual: tl.constexpr,
    is_centered: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at_D = tl.arange(0, BLOCK)
    mask_RD = (row_R < n_rows)[:, None] & (at_D < features)[None, :]
    start_R = (row_R // per_token) * token_stride + (row_R % per_token) * row_stride
    flat_RD = row_R[:, None] * features + at_D[None, :]
    x_RD = tl.load(x + start_R[:, None] + at_D[None, :], mask=mask_RD, other=0.0)
    if has_residual:
        added_RD = tl.load(residual + flat_RD, mask=mask_RD, other=0.0)
        x_RD = (x_RD.to(tl.float32) + added_RD.to(tl.float32)).to(x_RD.dtype)
        tl.store(total + flat_RD, x_RD, mask=mask_RD)
    wide_RD = x_RD.to(tl.float32)
    rstd_R = tl.rsqrt(tl.sum(wide_RD * wide_RD, axis=1) / features + eps)
    weight_RD = tl.load(weight + (row_R % per_token)[:, None] * weight_stride + at_D[None, :], mask=mask_RD, other=0.0)
    normed_RD = scaled(wide_RD * rstd_R[:, None], weight_RD, x_RD.dtype, is_centered)
    tl.store(out + flat_RD, normed_RD, mask=mask_RD)
