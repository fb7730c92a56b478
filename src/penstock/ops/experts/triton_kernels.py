"""The kernels behind `triton.py`.

Shape letters: M visits of a tile, N outputs, K inputs, E experts, V visits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.chain import let_next_start, wait_for_inputs
from penstock.ops.entry_linear.triton_kernels import rows_of
from penstock.ops.gated_kernel import activate
from penstock.ops.quantized_kernel import add_product, rescaled


@triton.jit(do_not_specialize=["n_visits"])
def count_visits(experts, counts, ranks, n_visits, BLOCK_V: tl.constexpr, is_chained: tl.constexpr):
    """How many visits each expert gets, and for each visit a number of its own among those of its expert.

    Which visit gets which number may change from run to run; what a visit computes does not depend on it.
    """
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    at_V = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_visit_V = at_V < n_visits
    expert_V = tl.load(experts + at_V, mask=is_visit_V, other=0)
    tl.store(ranks + at_V, tl.atomic_add(counts + expert_V, 1, mask=is_visit_V), mask=is_visit_V)


@triton.jit(do_not_specialize=["n_visits"])
def sort_visits(
    experts,
    counts,
    ranks,
    sorted_visits,
    n_visits,
    N_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_V: tl.constexpr,
    is_chained: tl.constexpr,
):
    """Put each visit at its place in the order of the experts."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    at_V = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_visit_V = at_V < n_visits
    at_E = tl.arange(0, BLOCK_E)
    count_E = tl.load(counts + at_E, mask=at_E < N_EXPERTS, other=0)
    expert_V = tl.load(experts + at_V, mask=is_visit_V, other=0)
    before_V = tl.sum(tl.where(at_E[None, :] < expert_V[:, None], count_E[None, :], 0), axis=1)
    place_V = before_V + tl.load(ranks + at_V, mask=is_visit_V, other=0)
    tl.store(sorted_visits + place_V, at_V, mask=is_visit_V)


@triton.jit
def visits_of_tile(
    experts, counts, sorted_visits, tile, n_visits, N_EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """(expert, visits, which of them are there); the expert is N_EXPERTS behind the last tile."""
    at_M = tl.arange(0, BLOCK_M)
    if sorted_visits is None:  # one token: a tile is a visit
        expert = tl.load(experts + tile).to(tl.int32)
        visit_M = tl.zeros([BLOCK_M], tl.int32) + tile
        is_there_M = at_M == 0
    else:
        at_E = tl.arange(0, BLOCK_E)
        count_E = tl.load(counts + at_E, mask=at_E < N_EXPERTS, other=0)
        tiles_E = (count_E + BLOCK_M - 1) // BLOCK_M
        is_before_E = tl.cumsum(tiles_E, axis=0) <= tile
        expert = tl.minimum(tl.sum(is_before_E.to(tl.int32), axis=0), N_EXPERTS)
        first = (tile - tl.sum(tl.where(at_E < expert, tiles_E, 0), axis=0)) * BLOCK_M
        start = tl.sum(tl.where(at_E < expert, count_E, 0), axis=0) + first
        stop = tl.sum(tl.where(at_E <= expert, count_E, 0), axis=0)
        is_there_M = start + at_M < stop  # none behind the last tile: there start is stop
        visit_M = tl.load(sorted_visits + start + at_M, mask=is_there_M, other=0)
    return expert, visit_M, is_there_M


@triton.jit
def scales_of(x_scales, at_M, is_there_M, SCHEME: tl.constexpr):
    """Of tokens that are rounded; zeros where they are not."""
    scale_M = tl.zeros(at_M.shape, tl.float32)
    if SCHEME == 0:
        scale_M += tl.load(x_scales + at_M, mask=is_there_M, other=0.0)
    return scale_M


@triton.jit(do_not_specialize=["n_visits"])
def enter_experts(
    x,
    x_scales,
    weight,
    scales,
    bias,
    inner,
    experts,
    counts,
    sorted_visits,
    width,
    token_stride,
    n_visits,
    FEATURES: tl.constexpr,
    GATE: tl.constexpr,
    SCHEME: tl.constexpr,
    TOP_K: tl.constexpr,
    N_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    is_chained: tl.constexpr,
):
    """Gate and up of a tile, and the activation of the two. SCHEME -1: weights are numbers of the dtype of x."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    expert, visit_M, is_there_M = visits_of_tile(
        experts, counts, sorted_visits, tl.program_id(1), n_visits, N_EXPERTS, BLOCK_E, BLOCK_M
    )
    if expert < N_EXPERTS:
        at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        is_out_N = at_N < width
        own = weight + expert.to(tl.int64) * (2 * width * FEATURES)
        gate_N1 = own + rows_of(at_N, width, GATE, False)[:, None] * FEATURES
        up_N1 = own + rows_of(at_N, width, GATE, True)[:, None] * FEATURES
        x_M1 = x + ((visit_M // TOP_K).to(tl.int64) * token_stride)[:, None]
        gate_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if SCHEME < 0:
            for k in range(0, FEATURES, BLOCK_K):
                at_K = k + tl.arange(0, BLOCK_K)
                mask_NK = is_out_N[:, None] & (at_K < FEATURES)[None, :]
                x_MK = tl.load(x_M1 + at_K[None, :], mask=is_there_M[:, None] & (at_K < FEATURES)[None, :], other=0.0)
                gate_NK = tl.load(gate_N1 + at_K[None, :], mask=mask_NK, other=0.0)
                up_NK = tl.load(up_N1 + at_K[None, :], mask=mask_NK, other=0.0)
                gate_MN = tl.dot(x_MK, tl.trans(gate_NK), gate_MN, input_precision="ieee")
                up_MN = tl.dot(x_MK, tl.trans(up_NK), up_MN, input_precision="ieee")
        else:
            row_N = expert * 2 * width + rows_of(at_N, width, GATE, False)
            up_row_N = expert * 2 * width + rows_of(at_N, width, GATE, True)
            there_M1 = is_there_M[:, None]
            for k in range(0, FEATURES, BLOCK_K):
                gate_MN = add_product(
                    gate_MN, x_M1, there_M1, weight, scales, row_N, is_out_N, k, FEATURES, SCHEME, BLOCK_K
                )
                up_MN = add_product(
                    up_MN, x_M1, there_M1, weight, scales, up_row_N, is_out_N, k, FEATURES, SCHEME, BLOCK_K
                )
            x_scale_M = scales_of(x_scales, visit_M // TOP_K, is_there_M, SCHEME)
            gate_MN = rescaled(gate_MN, x_scale_M, scales, row_N, is_out_N, SCHEME)
            up_MN = rescaled(up_MN, x_scale_M, scales, up_row_N, is_out_N, SCHEME)
        dtype: tl.constexpr = inner.dtype.element_ty
        if bias is not None:
            own_bias = bias + expert * 2 * width
            gate_MN += tl.load(own_bias + rows_of(at_N, width, GATE, False), mask=is_out_N, other=0.0).to(tl.float32)
            up_MN += tl.load(own_bias + rows_of(at_N, width, GATE, True), mask=is_out_N, other=0.0).to(tl.float32)
        out_MN = activate(gate_MN.to(dtype).to(tl.float32), up_MN.to(dtype).to(tl.float32), dtype, GATE)
        at_MN = visit_M.to(tl.int64)[:, None] * width + at_N[None, :]
        tl.store(inner + at_MN, out_MN, mask=is_there_M[:, None] & is_out_N[None, :])


@triton.jit(do_not_specialize=["n_visits"])
def leave_experts(
    inner,
    inner_scales,
    weight,
    scales,
    bias,
    shares,
    out,
    experts,
    counts,
    sorted_visits,
    features,
    n_visits,
    WIDTH: tl.constexpr,
    SCHEME: tl.constexpr,
    TOP_K: tl.constexpr,
    N_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    is_chained: tl.constexpr,
):
    """Down of a tile, times the share that the router gave."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    expert, visit_M, is_there_M = visits_of_tile(
        experts, counts, sorted_visits, tl.program_id(1), n_visits, N_EXPERTS, BLOCK_E, BLOCK_M
    )
    if expert < N_EXPERTS:
        at_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        is_out_N = at_N < features
        own_N1 = weight + expert.to(tl.int64) * (features * WIDTH) + at_N[:, None] * WIDTH
        inner_M1 = inner + (visit_M.to(tl.int64) * WIDTH)[:, None]
        sum_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if SCHEME < 0:
            for k in range(0, WIDTH, BLOCK_K):
                at_K = k + tl.arange(0, BLOCK_K)
                mask_NK, mask_MK = (
                    is_out_N[:, None] & (at_K < WIDTH)[None, :],
                    is_there_M[:, None] & (at_K < WIDTH)[None, :],
                )
                inner_MK = tl.load(inner_M1 + at_K[None, :], mask=mask_MK, other=0.0)
                weight_NK = tl.load(own_N1 + at_K[None, :], mask=mask_NK, other=0.0)
                sum_MN = tl.dot(inner_MK, tl.trans(weight_NK), sum_MN, input_precision="ieee")
        else:
            row_N = expert * features + at_N
            there_M1 = is_there_M[:, None]
            for k in range(0, WIDTH, BLOCK_K):
                sum_MN = add_product(
                    sum_MN, inner_M1, there_M1, weight, scales, row_N, is_out_N, k, WIDTH, SCHEME, BLOCK_K
                )
            inner_scale_M = scales_of(inner_scales, visit_M, is_there_M, SCHEME)
            sum_MN = rescaled(sum_MN, inner_scale_M, scales, row_N, is_out_N, SCHEME)
        dtype: tl.constexpr = out.dtype.element_ty
        if bias is not None:
            sum_MN += tl.load(bias + expert * features + at_N, mask=is_out_N, other=0.0).to(tl.float32)
        share_M = tl.load(shares + visit_M, mask=is_there_M, other=0.0).to(tl.float32)
        out_MN = (sum_MN.to(dtype).to(tl.float32) * share_M[:, None]).to(dtype)
        at_MN = visit_M.to(tl.int64)[:, None] * features + at_N[None, :]
        tl.store(out + at_MN, out_MN, mask=is_there_M[:, None] & is_out_N[None, :])


@triton.jit
def add_visits(visits, out, features, TOP_K: tl.constexpr, BLOCK_D: tl.constexpr, is_chained: tl.constexpr):
    """The sum over a token's experts, in their order."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    token = tl.program_id(0).to(tl.int64)
    at_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    for k in tl.static_range(TOP_K):
        sum_D += tl.load(visits + (token * TOP_K + k) * features + at_D, mask=at_D < features, other=0.0).to(tl.float32)
    tl.store(out + token * features + at_D, sum_D.to(out.dtype.element_ty), mask=at_D < features)
