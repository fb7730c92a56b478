"""What kernels in Triton do with weights of `quantized.py`: read the few bits, make numbers of them in registers.

Products of e4m3 numbers are formed in float16, which holds every one of them: exact, and their sums are float32 (the
tensor cores of some GPUs add products of 8-bit floats in fewer bits).

Shape letters: M tokens, N outputs, K inputs, G groups of 32 inputs, H the 16 bytes of a group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.weight_format import Format

SCHEMES = {Format.FP8: 0, Format.INT8: 1, Format.INT4: 2}
FP8_MOST = tl.constexpr(448.0)
LEAST = tl.constexpr(1e-30)


@triton.jit
def fp8_scale(most):
    """(what to multiply by, what gives it back) for rows whose largest number is `most`; see `rounding.fp8_of_rows`."""
    most = tl.maximum(most, LEAST)
    return tl.div_rn(most * 0.0 + FP8_MOST, most), tl.div_rn(most, most * 0.0 + FP8_MOST)


@triton.jit
def to_fp8(x):
    """float32 rounded to e4m3, to the nearest, ties to even, at most 448.

    Rounded by hand first, so that the cast changes nothing: the interpreter's own loses the carry of a mantissa.
    """
    x = tl.minimum(tl.maximum(x, -FP8_MOST), FP8_MOST)
    bits = x.to(tl.int32, bitcast=True)
    bits += 0x7FFFF + ((bits >> 20) & 1)  # 20 bits of the mantissa are dropped
    normal = (bits & -0x100000).to(tl.float32, bitcast=True)
    small = (x + 24576.0) - 24576.0  # below 2**-6 the steps are 2**-9: those of 2**14 to 2**15 in float32
    return tl.where(tl.abs(x) < 0.015625, small, normal).to(tl.float8e4nv)


@triton.jit
def row_starts(row_N, K: tl.constexpr, SCHEME: tl.constexpr):
    """(where rows of numbers start, where their scales do), counted in numbers, or bytes, and in scales."""
    if SCHEME == 2:
        n_groups: tl.constexpr = (K + 31) // 32
        starts = row_N.to(tl.int64) * (n_groups * 16), row_N.to(tl.int64) * n_groups
    else:
        starts = row_N.to(tl.int64) * K, row_N.to(tl.int64)
    return starts


@triton.jit
def places(k, SCHEME: tl.constexpr, BLOCK_K: tl.constexpr):
    """The inputs of a block from `k`: [K], or [G, H] with those in the low halves of bytes."""
    if SCHEME == 2:
        at = k + 32 * tl.arange(0, BLOCK_K // 32)[:, None] + tl.arange(0, 16)[None, :]
    else:
        at = k + tl.arange(0, BLOCK_K)
    return at


@triton.jit
def stored(numbers, scales, row_N, is_here_N, k, K: tl.constexpr, SCHEME: tl.constexpr, BLOCK_K: tl.constexpr):
    """(what is stored of these rows for a block of inputs from `k`: [N, K] or [N, G, H]; scales [N, G] or 1)."""
    first_N, first_scale_N = row_starts(row_N, K, SCHEME)
    if SCHEME == 2:
        at_G = k // 32 + tl.arange(0, BLOCK_K // 32)
        is_here_NG = is_here_N[:, None] & (at_G < (K + 31) // 32)[None, :]
        scale = tl.load(scales + first_scale_N[:, None] + at_G[None, :], mask=is_here_NG, other=0.0).to(tl.float32)
        at_GH = 16 * at_G[:, None] + tl.arange(0, 16)[None, :]
        tile = tl.load(numbers + first_N[:, None, None] + at_GH[None, :, :], mask=is_here_NG[:, :, None], other=0)
    else:
        at_K = k + tl.arange(0, BLOCK_K)
        is_here_NK = is_here_N[:, None] & (at_K < K)[None, :]
        nothing: tl.constexpr = 0.0 if SCHEME == 0 else 0
        tile = tl.load(numbers + first_N[:, None] + at_K[None, :], mask=is_here_NK, other=nothing)
        scale = 1.0
    return tile, scale


@triton.jit
def halves(tile, scale_NG):
    """float32 numbers of bytes of int4: (inputs 0 to 15 of each group, inputs 16 to 31), each [N, G, H]."""
    low = ((tile & 15).to(tl.float32) - 8.0) * scale_NG[:, :, None]
    return low, ((tile >> 4).to(tl.float32) - 8.0) * scale_NG[:, :, None]


@triton.jit
def terms(tile, scale_NG, x, x_high, SCHEME: tl.constexpr):
    """Products of one token with rows, float32, shaped as the tile; x_high: the inputs in the high halves of bytes."""
    if SCHEME == 2:
        low, high = halves(tile, scale_NG)
        found = low * x[None, :, :] + high * x_high[None, :, :]
    else:
        found = tile.to(tl.float32) * x[None, :]
    return found


@triton.jit
def row_sums(sums, SCHEME: tl.constexpr):
    """[N] of what `terms` gave."""
    if SCHEME == 2:
        found = tl.sum(tl.sum(sums, axis=2), axis=1)
    else:
        found = tl.sum(sums, axis=1)
    return found


@triton.jit
def add_product(
    sum_MN, x_M1, is_token_M1, numbers, scales, row_N, is_here_N, k, K: tl.constexpr, SCHEME: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """sum + x @ rows.T over a block of inputs from `k`; scales of whole rows are left for `rescaled`."""
    tile, scale_NG = stored(numbers, scales, row_N, is_here_N, k, K, SCHEME, BLOCK_K)
    if SCHEME == 2:
        n_lows: tl.constexpr = BLOCK_K // 2
        low, high = halves(tile, scale_NG)
        at_lows = tl.arange(0, n_lows)
        at = k + at_lows // 16 * 32 + at_lows % 16
        x_low = tl.load(x_M1 + at[None, :], mask=is_token_M1 & (at < K)[None, :], other=0.0)
        x_high = tl.load(x_M1 + at[None, :] + 16, mask=is_token_M1 & (at + 16 < K)[None, :], other=0.0)
        low = tl.reshape(low, (low.shape[0], n_lows)).to(x_low.dtype)
        high = tl.reshape(high, (high.shape[0], n_lows)).to(x_low.dtype)
        sum_MN = tl.dot(x_low, tl.trans(low), sum_MN, input_precision="ieee")
        sum_MN = tl.dot(x_high, tl.trans(high), sum_MN, input_precision="ieee")
    else:
        at_K = k + tl.arange(0, BLOCK_K)
        x_MK = tl.load(x_M1 + at_K[None, :], mask=is_token_M1 & (at_K < K)[None, :], other=0.0)
        if SCHEME == 0:
            sum_MN = tl.dot(x_MK.to(tl.float16), tl.trans(tile.to(tl.float16)), sum_MN, input_precision="ieee")
        else:
            sum_MN = tl.dot(x_MK, tl.trans(tile.to(x_MK.dtype)), sum_MN, input_precision="ieee")
    return sum_MN


@triton.jit
def rescaled(sum_MN, x_scale_M, scales, row_N, is_here_N, SCHEME: tl.constexpr):
    """With the scales of tokens and rows, where the scheme has them."""
    if SCHEME != 2:
        sum_MN = sum_MN * tl.load(scales + row_N, mask=is_here_N, other=0.0)[None, :]
    if SCHEME == 0:
        sum_MN = sum_MN * x_scale_M[:, None]
    return sum_MN
