"""The kernels behind `triton.py`: those of `entry_linear` for weights of few bits, where few tokens read them.

Shape letters: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.chain import let_next_start, wait_for_inputs
from penstock.ops.entry_linear.triton_kernels import entering, finished, rows_of
from penstock.ops.gated_kernel import activate
from penstock.ops.quantized_kernel import add_product, halves, places, rescaled, row_sums, stored, terms


@triton.jit
def entering_block(
    x, residual, norm, k, rstd, eps, K: tl.constexpr, has_residual: tl.constexpr, has_norm: tl.constexpr,
    is_centered: tl.constexpr, SCHEME: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The token's inputs from `k`, as `terms` wants them."""
    at = places(k, SCHEME, BLOCK_K)
    x_K, _ = entering(x, residual, norm, at, at < K, rstd, eps, has_residual, has_norm, is_centered)
    high_K = x_K
    if SCHEME == 2:
        at += 16
        high_K, _ = entering(x, residual, norm, at, at < K, rstd, eps, has_residual, has_norm, is_centered)
    return x_K.to(tl.float32), high_K.to(tl.float32)


@triton.jit
def single(
    x,
    x_scale,
    residual,
    norm,
    numbers,
    scales,
    bias,
    out,
    total,
    eps,
    width,
    K: tl.constexpr,
    has_residual: tl.constexpr,
    has_norm: tl.constexpr,
    is_centered: tl.constexpr,
    GATE: tl.constexpr,
    SCHEME: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    is_chained: tl.constexpr,
):
    """One token: every thread multiplies and adds what it loads. x_scale: of a token rounded to fp8, else None."""
    at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_here_N = at_N < width
    row_N, up_N = rows_of(at_N, width, GATE, False), rows_of(at_N, width, GATE, True)
    tile, tile_scale = stored(numbers, scales, row_N, is_here_N, 0, K, SCHEME, BLOCK_K)
    up_tile, up_scale = tile, tile_scale
    if GATE >= 0:
        up_tile, up_scale = stored(numbers, scales, up_N, is_here_N, 0, K, SCHEME, BLOCK_K)
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    rstd = 0.0
    if has_norm:
        all_K = tl.arange(0, WHOLE_K)
        _, whole_K = entering(x, residual, norm, all_K, all_K < K, 0.0, eps, has_residual, False, is_centered)
        rstd = tl.rsqrt(tl.sum(whole_K.to(tl.float32) * whole_K.to(tl.float32), axis=0) / K + eps)
        if has_residual:
            tl.store(total + all_K, whole_K, mask=all_K < tl.where(tl.program_id(0) == 0, K, 0))
    x_K, high_K = entering_block(
        x, residual, norm, 0, rstd, eps, K, has_residual, has_norm, is_centered, SCHEME, BLOCK_K
    )
    sums = terms(tile, tile_scale, x_K, high_K, SCHEME)
    up_sums = sums
    if GATE >= 0:
        up_sums = terms(up_tile, up_scale, x_K, high_K, SCHEME)
    for k in tl.static_range(BLOCK_K, K, BLOCK_K):
        tile, tile_scale = stored(numbers, scales, row_N, is_here_N, k, K, SCHEME, BLOCK_K)
        x_K, high_K = entering_block(
            x, residual, norm, k, rstd, eps, K, has_residual, has_norm, is_centered, SCHEME, BLOCK_K
        )
        sums += terms(tile, tile_scale, x_K, high_K, SCHEME)
        if GATE >= 0:
            up_tile, up_scale = stored(numbers, scales, up_N, is_here_N, k, K, SCHEME, BLOCK_K)
            up_sums += terms(up_tile, up_scale, x_K, high_K, SCHEME)
    x_scale_1 = tl.zeros([1], tl.float32)
    if SCHEME == 0:
        x_scale_1 += tl.load(x_scale)
    dtype: tl.constexpr = out.dtype.element_ty
    sum_N = scaled_sums(sums, x_scale_1, scales, row_N, is_here_N, SCHEME)
    y_N = finished(sum_N, bias, row_N, is_here_N, dtype)
    if GATE >= 0:
        sum_N = scaled_sums(up_sums, x_scale_1, scales, up_N, is_here_N, SCHEME)
        y_N = activate(y_N.to(tl.float32), finished(sum_N, bias, up_N, is_here_N, dtype).to(tl.float32), dtype, GATE)
    tl.store(out + at_N, y_N, mask=is_here_N)


@triton.jit
def scaled_sums(sums, x_scale_1, scales, row_N, is_here_N, SCHEME: tl.constexpr):
    """[N] of one token."""
    sum_1N = row_sums(sums, SCHEME)[None, :]
    return tl.sum(rescaled(sum_1N, x_scale_1, scales, row_N, is_here_N, SCHEME), axis=0)


@triton.jit(do_not_specialize=["n_tokens"])
def flat(
    x,
    x_scales,
    numbers,
    scales,
    bias,
    out,
    n_tokens,
    width,
    token_stride,
    K: tl.constexpr,
    GATE: tl.constexpr,
    SCHEME: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    is_chained: tl.constexpr,
):
    """Up to BLOCK_M tokens on the tensor cores, cut over the outputs alone (flat GEMM, arXiv 2311.01282)."""
    at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_M = tl.arange(0, BLOCK_M)
    is_here_N, is_token_M = at_N < width, at_M < n_tokens
    row_N, up_N = rows_of(at_N, width, GATE, False), rows_of(at_N, width, GATE, True)
    x_M1 = x + at_M[:, None] * token_stride
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    sum_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up_sum_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        sum_MN = add_product(
            sum_MN, x_M1, is_token_M[:, None], numbers, scales, row_N, is_here_N, k, K, SCHEME, BLOCK_K
        )
        if GATE >= 0:
            up_sum_MN = add_product(
                up_sum_MN, x_M1, is_token_M[:, None], numbers, scales, up_N, is_here_N, k, K, SCHEME, BLOCK_K
            )
    x_scale_M = tl.zeros([BLOCK_M], tl.float32)
    if SCHEME == 0:
        x_scale_M = tl.load(x_scales + at_M, mask=is_token_M, other=0.0)
    dtype: tl.constexpr = out.dtype.element_ty
    y_MN = rescaled(sum_MN, x_scale_M, scales, row_N, is_here_N, SCHEME)
    y_MN = finished(y_MN, bias, row_N[None, :], is_here_N[None, :], dtype)
    if GATE >= 0:
        up_MN = rescaled(up_sum_MN, x_scale_M, scales, up_N, is_here_N, SCHEME)
        up_MN = finished(up_MN, bias, up_N[None, :], is_here_N[None, :], dtype)
        y_MN = activate(y_MN.to(tl.float32), up_MN.to(tl.float32), dtype, GATE)
    out_at_MN = at_M[:, None].to(tl.int64) * width + at_N[None, :]
    tl.store(out + out_at_MN, y_MN, mask=is_token_M[:, None] & is_here_N[None, :])


@triton.jit
def restore(
    numbers, scales, out, n_rows, K: tl.constexpr, SCHEME: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Write the numbers that rows stand for, rounded to the dtype of `out`, without wider ones in memory between."""
    at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k, is_here_N = tl.program_id(1) * BLOCK_K, at_N < n_rows
    tile, scale_NG = stored(numbers, scales, at_N, is_here_N, k, K, SCHEME, BLOCK_K)
    at, start_N = places(k, SCHEME, BLOCK_K), at_N.to(tl.int64) * K
    dtype: tl.constexpr = out.dtype.element_ty
    if SCHEME == 2:
        low, high = halves(tile, scale_NG)
        into, is_here = out + start_N[:, None, None] + at[None, :, :], is_here_N[:, None, None]
        tl.store(into, low.to(dtype), mask=is_here & (at < K)[None, :, :])
        tl.store(into + 16, high.to(dtype), mask=is_here & (at + 16 < K)[None, :, :])
    else:
        wide_NK = tile.to(tl.float32) * tl.load(scales + at_N, mask=is_here_N, other=0.0)[:, None]
        mask_NK = is_here_N[:, None] & (at < K)[None, :]
        tl.store(out + start_N[:, None] + at[None, :], wide_NK.to(dtype), mask=mask_NK)
