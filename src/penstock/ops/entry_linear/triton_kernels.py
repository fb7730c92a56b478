"""The kernels behind `triton.py`: linear layers for few tokens, where reading the weights once is all that counts.

`single` and `flat` can start while the kernel before them ends (programmatic dependent launch): `single` has its
weights under way before it waits for what it multiplies them by.

Shape letters: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.chain import let_next_start, wait_for_inputs
from penstock.ops.gated_kernel import activate
from penstock.ops.rms_norm.triton import scaled


@triton.jit
def rows_of(first_N, width, GATE: tl.constexpr, is_up: tl.constexpr):
    """Rows of the weights that make the gates, or what they let through. GATE -1: there is none."""
    if GATE == 2:
        return 2 * first_N + (1 if is_up else 0)
    return first_N + width if is_up else first_N


@triton.jit
def entering(x, residual, norm, at_K, mask_K, rstd, eps, has_residual: tl.constexpr, has_norm: tl.constexpr,
             is_centered: tl.constexpr):  # fmt: skip
    """(normed, total) of these features of one token."""
    x_K = tl.load(x + at_K, mask=mask_K, other=0.0)
    if has_residual:
        x_K = (x_K.to(tl.float32) + tl.load(residual + at_K, mask=mask_K, other=0.0).to(tl.float32)).to(x_K.dtype)
    total_K = x_K
    if has_norm:
        weight_K = tl.load(norm + at_K, mask=mask_K, other=0.0)
        x_K = scaled(x_K.to(tl.float32) * rstd, weight_K, x_K.dtype, is_centered)
    return x_K, total_K


@triton.jit
def single(
    x,
    residual,
    norm,
    weight,
    bias,
    out,
    total,
    eps,
    width,
    token_stride,
    K: tl.constexpr,
    has_residual: tl.constexpr,
    has_norm: tl.constexpr,
    is_centered: tl.constexpr,
    GATE: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    is_chained: tl.constexpr,
):
    """One token: every thread multiplies and adds what it loads; no tensor core is needed.

    Of several tokens each has programs of its own, which read the weights again, from the cache.
    """
    token = tl.program_id(1).to(tl.int64)
    x, out = x + token * token_stride, out + token * width
    if has_residual:
        residual, total = residual + token * K, total + token * K
    at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_here_N1 = (at_N < width)[:, None]
    at_K = tl.arange(0, BLOCK_K)
    row_N1 = rows_of(at_N, width, GATE, False).to(tl.int64)[:, None] * K
    up_N1 = rows_of(at_N, width, GATE, True).to(tl.int64)[:, None] * K
    first_NK = tl.load(weight + row_N1 + at_K[None, :], mask=is_here_N1 & (at_K < K)[None, :], other=0.0)
    if GATE >= 0:
        first_up_NK = tl.load(weight + up_N1 + at_K[None, :], mask=is_here_N1 & (at_K < K)[None, :], other=0.0)
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    rstd = 0.0
    if has_norm:
        all_K = tl.arange(0, WHOLE_K)
        _, whole_K = entering(x, residual, norm, all_K, all_K < K, 0.0, eps, has_residual, False, is_centered)
        rstd = tl.rsqrt(tl.sum(whole_K.to(tl.float32) * whole_K.to(tl.float32), axis=0) / K + eps)
        if has_residual:
            tl.store(total + all_K, whole_K, mask=all_K < tl.where(tl.program_id(0) == 0, K, 0))
    x_K, _ = entering(x, residual, norm, at_K, at_K < K, rstd, eps, has_residual, has_norm, is_centered)
    sum_NK = first_NK.to(tl.float32) * x_K.to(tl.float32)[None, :]
    up_sum_NK = sum_NK
    if GATE >= 0:
        up_sum_NK = first_up_NK.to(tl.float32) * x_K.to(tl.float32)[None, :]
    for k in tl.static_range(BLOCK_K, K, BLOCK_K):
        at_k = k + at_K
        w_NK = tl.load(weight + row_N1 + at_k[None, :], mask=is_here_N1 & (at_k < K)[None, :], other=0.0)
        x_K, _ = entering(x, residual, norm, at_k, at_k < K, rstd, eps, has_residual, has_norm, is_centered)
        sum_NK += w_NK.to(tl.float32) * x_K.to(tl.float32)[None, :]
        if GATE >= 0:
            w_NK = tl.load(weight + up_N1 + at_k[None, :], mask=is_here_N1 & (at_k < K)[None, :], other=0.0)
            up_sum_NK += w_NK.to(tl.float32) * x_K.to(tl.float32)[None, :]
    y_N = finished(tl.sum(sum_NK, axis=1), bias, rows_of(at_N, width, GATE, False), at_N < width, out.dtype.element_ty)
    if GATE >= 0:
        up_at_N = rows_of(at_N, width, GATE, True)
        up_N = finished(tl.sum(up_sum_NK, axis=1), bias, up_at_N, at_N < width, out.dtype.element_ty)
        y_N = activate(y_N.to(tl.float32), up_N.to(tl.float32), out.dtype.element_ty, GATE)
    tl.store(out + at_N, y_N, mask=at_N < width)


@triton.jit
def finished(sum_N, bias, row_N, is_here_N, dtype: tl.constexpr):
    """With the bias, rounded as a linear layer rounds."""
    if bias is not None:
        sum_N += tl.load(bias + row_N, mask=is_here_N, other=0.0).to(tl.float32)
    return sum_N.to(dtype)


@triton.jit(do_not_specialize=["n_tokens"])
def flat(
    x,
    weight,
    bias,
    out,
    n_tokens,
    width,
    token_stride,
    K: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    is_chained: tl.constexpr,
):
    """Up to BLOCK_M tokens on the tensor cores, cut over the outputs alone (flat GEMM, arXiv 2311.01282)."""
    at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_M = tl.arange(0, BLOCK_M)
    at_K = tl.arange(0, BLOCK_K)
    is_here_N1, is_here_M1 = (at_N < width)[:, None], (at_M < n_tokens)[:, None]
    row_N1 = weight + rows_of(at_N, width, GATE, False).to(tl.int64)[:, None] * K
    up_N1 = weight + rows_of(at_N, width, GATE, True).to(tl.int64)[:, None] * K
    x_M1 = x + at_M[:, None] * token_stride
    mask_1K = (at_K < K)[None, :]
    w_NK = tl.load(row_N1 + at_K[None, :], mask=is_here_N1 & mask_1K, other=0.0)
    up_sum_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if GATE >= 0:
        up_NK = tl.load(up_N1 + at_K[None, :], mask=is_here_N1 & mask_1K, other=0.0)
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    x_MK = tl.load(x_M1 + at_K[None, :], mask=is_here_M1 & mask_1K, other=0.0)
    sum_MN = tl.dot(x_MK, tl.trans(w_NK), input_precision="ieee")
    if GATE >= 0:
        up_sum_MN = tl.dot(x_MK, tl.trans(up_NK), input_precision="ieee")
    for k in range(BLOCK_K, K, BLOCK_K):
        at_k = k + at_K
        mask_1K = (at_k < K)[None, :]
        x_MK = tl.load(x_M1 + at_k[None, :], mask=is_here_M1 & mask_1K, other=0.0)
        w_NK = tl.load(row_N1 + at_k[None, :], mask=is_here_N1 & mask_1K, other=0.0)
        sum_MN = tl.dot(x_MK, tl.trans(w_NK), sum_MN, input_precision="ieee")
        if GATE >= 0:
            up_NK = tl.load(up_N1 + at_k[None, :], mask=is_here_N1 & mask_1K, other=0.0)
            up_sum_MN = tl.dot(x_MK, tl.trans(up_NK), up_sum_MN, input_precision="ieee")
    dtype: tl.constexpr = out.dtype.element_ty
    y_MN = sum_MN
    if bias is not None:
        y_MN += tl.load(bias + rows_of(at_N, width, GATE, False), mask=at_N < width, other=0.0).to(tl.float32)[None, :]
    y_MN = y_MN.to(dtype)
    if GATE >= 0:
        if bias is not None:
            up_bias_N = tl.load(bias + rows_of(at_N, width, GATE, True), mask=at_N < width, other=0.0)
            up_sum_MN += up_bias_N.to(tl.float32)[None, :]
        y_MN = activate(y_MN.to(tl.float32), up_sum_MN.to(dtype).to(tl.float32), dtype, GATE)
    out_at_MN = at_M[:, None].to(tl.int64) * width + at_N[None, :]
    tl.store(out + out_at_MN, y_MN, mask=is_here_M1 & (at_N < width)[None, :])


@triton.jit(do_not_specialize=["n_rows"])
def tiles(
    x,
    weight,
    bias,
    sums,
    n_rows,
    outputs,
    row_stride,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    is_whole: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of outputs over one part of the inputs: its sums in float32, or, of the only part, the result."""
    part = tl.program_id(1)
    at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_M = tl.arange(0, BLOCK_M)
    at_K = tl.arange(0, BLOCK_K)
    is_here_N, is_here_M = at_N < outputs, at_M < n_rows
    w_N1 = weight + at_N[:, None].to(tl.int64) * K
    x_M1 = x + at_M[:, None].to(tl.int64) * row_stride
    each: tl.constexpr = ((K + BLOCK_K * PARTS - 1) // (BLOCK_K * PARTS)) * BLOCK_K
    first = part * each
    sum_NM = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in range(first, tl.minimum(first + each, K), BLOCK_K):
        mask_1K = (k + at_K < K)[None, :]
        w_NK = tl.load(w_N1 + k + at_K[None, :], mask=is_here_N[:, None] & mask_1K, other=0.0)
        x_MK = tl.load(x_M1 + k + at_K[None, :], mask=is_here_M[:, None] & mask_1K, other=0.0)
        sum_NM = tl.dot(w_NK, tl.trans(x_MK), sum_NM, input_precision="ieee")
    sum_MN = tl.trans(sum_NM)
    at_MN = at_M[:, None].to(tl.int64) * outputs + at_N[None, :]
    is_here_MN = is_here_M[:, None] & is_here_N[None, :]
    if is_whole:
        if bias is not None:
            sum_MN += tl.load(bias + at_N, mask=is_here_N, other=0.0).to(tl.float32)[None, :]
        tl.store(sums + at_MN, sum_MN.to(sums.dtype.element_ty), mask=is_here_MN)
    else:
        tl.store(sums + part.to(tl.int64) * n_rows * outputs + at_MN, sum_MN, mask=is_here_MN)


@triton.jit(do_not_specialize=["n_rows"])
def join(
    sums, bias, out, n_rows, outputs, width, GATE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: the parts added in their order, the bias, the activation."""
    row = tl.program_id(0).to(tl.int64)
    at_F = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_here_F = at_F < width
    dtype: tl.constexpr = out.dtype.element_ty
    y_F = finished(
        _added(sums, row, rows_of(at_F, width, GATE, False), is_here_F, n_rows, outputs, PARTS),
        bias, rows_of(at_F, width, GATE, False), is_here_F, dtype,
    )  # fmt: skip
    if GATE >= 0:
        at_up_F = rows_of(at_F, width, GATE, True)
        up_F = finished(_added(sums, row, at_up_F, is_here_F, n_rows, outputs, PARTS), bias, at_up_F, is_here_F, dtype)
        y_F = activate(y_F.to(tl.float32), up_F.to(tl.float32), dtype, GATE)
    tl.store(out + row * width + at_F, y_F, mask=is_here_F)


@triton.jit
def _added(sums, row, at_N, is_here_N, n_rows, outputs, PARTS: tl.constexpr):
    total_N = tl.load(sums + row * outputs + at_N, mask=is_here_N, other=0.0)
    for part in tl.static_range(1, PARTS):
        start = (part * n_rows + row) * outputs
        total_N += tl.load(sums + start + at_N, mask=is_here_N, other=0.0)
    return total_N
