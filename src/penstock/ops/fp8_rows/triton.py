"""One program per token, which sees its row whole: the norm, the largest number, the rounding.

Shape letters: T tokens, D features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs
from penstock.ops.fp8_rows import reference
from penstock.ops.quantized_kernel import fp8_scale, to_fp8
from penstock.ops.rms_norm.triton import scaled
from penstock.ops.rounding import FP8

MOST_FEATURES = 65536


def fp8_rows(
    x_TD: Tensor,
    norm_D: Tensor | None = None,
    eps: float = 0.0,
    residual_TD: Tensor | None = None,
    is_centered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.fp8_rows`."""
    n_tokens, features = x_TD.shape
    if features > MOST_FEATURES or x_TD.stride(1) != 1:
        return reference.fp8_rows(x_TD, norm_D, eps, residual_TD, is_centered)
    rounded_TD = torch.empty((n_tokens, features), dtype=FP8, device=x_TD.device)
    scales_T = torch.empty(n_tokens, dtype=torch.float32, device=x_TD.device)
    total_TD = x_TD
    if residual_TD is not None:
        residual_TD = residual_TD.contiguous()
        total_TD = torch.empty((n_tokens, features), dtype=x_TD.dtype, device=x_TD.device)
    if n_tokens == 0:
        return rounded_TD, scales_T, total_TD
    block = triton.next_power_of_2(features)
    _fp8_rows[(n_tokens,)](
        x_TD,
        residual_TD,
        norm_D,
        rounded_TD,
        scales_T,
        total_TD,
        x_TD.stride(0),
        eps,
        features,
        has_residual=residual_TD is not None,
        has_norm=norm_D is not None,
        is_centered=is_centered,
        BLOCK=block,
        **chain_options(x_TD.device, n_tokens),
        num_warps=max(1, min(32, block // 512)),
    )
    return rounded_TD, scales_T, total_TD


@triton.jit
def _fp8_rows(
    x,
    residual,
    norm,
    rounded,
    scales,
    total,
    token_stride,
    eps,
    features,
    has_residual: tl.constexpr,
    has_norm: tl.constexpr,
    is_centered: tl.constexpr,
    BLOCK: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    token = tl.program_id(0).to(tl.int64)
    at_D = tl.arange(0, BLOCK)
    mask_D = at_D < features
    x_D = tl.load(x + token * token_stride + at_D, mask=mask_D, other=0.0)
    if has_residual:
        added_D = tl.load(residual + token * features + at_D, mask=mask_D, other=0.0)
        x_D = (x_D.to(tl.float32) + added_D.to(tl.float32)).to(x_D.dtype)
        tl.store(total + token * features + at_D, x_D, mask=mask_D)
    if has_norm:
        wide_D = x_D.to(tl.float32)
        rstd = tl.rsqrt(tl.sum(wide_D * wide_D, axis=0) / features + eps)
        weight_D = tl.load(norm + at_D, mask=mask_D, other=0.0)
        x_D = scaled(wide_D * rstd, weight_D, x_D.dtype, is_centered)
    wide_D = x_D.to(tl.float32)
    inverse, scale = fp8_scale(tl.max(tl.abs(wide_D), axis=0))
    tl.store(rounded + token * features + at_D, to_fp8(wide_D * inverse), mask=mask_D)
    tl.store(scales + token, scale)
