"""The kernels behind `triton.py`.

What changes from step to step is not specialized, neither numbers nor the alignment of parts of a packed array: else
Triton compiles a kernel once more in the middle of serving. `runtime.kernel_variants` counts on it.

Scores are kept in units of log2, so that the exponential is one instruction; what goes out is a natural log.

Shape letters: G query heads that share a KV head, M tokens of a tile, N keys of a tile, D head dim, P parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.chain import let_next_start, wait_for_inputs

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def capped(score, scale, soft_cap, has_cap: tl.constexpr):
    """Scaled scores, bent if asked, in units of log2."""
    if has_cap:
        bent = 1.0 - 2.0 / (tl.exp(2.0 * score * scale / soft_cap) + 1.0)  # tanh
        return bent * (soft_cap * LOG2_E)
    return score * (scale * LOG2_E)


@triton.jit
def part_of(kv_len, part, window, has_window: tl.constexpr, N_PARTS: tl.constexpr, LEAST_KEYS: tl.constexpr):
    """The keys [start, stop) of a part; empty behind the last."""
    first = 0
    if has_window:
        first = tl.maximum(kv_len - window, 0)
    if N_PARTS == 1:
        return first, kv_len
    each = tl.cdiv(kv_len - first, N_PARTS)
    each = tl.maximum(tl.cdiv(each, 64) * 64, LEAST_KEYS)
    start = first + part * each
    return start, tl.minimum(start + each, kv_len)


@triton.jit
def key_offsets(
    table, at_N, is_seen_N, kv_head, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr
):
    """Where the features of these keys begin in the pool."""
    block_N = tl.load(table + at_N // BLOCK_TOKENS, mask=is_seen_N, other=0).to(tl.int64)
    return ((block_N * BLOCK_TOKENS + at_N % BLOCK_TOKENS) * KV_HEADS + kv_head) * HEAD_DIM


@triton.jit(do_not_specialize=["table_stride", "window", "segments"])
def one_token_segments(
    q,
    kv,
    tables,
    kv_lens,
    q_starts,
    segments,
    out,
    lse,
    scale,
    soft_cap,
    token_stride,
    head_stride,
    values_at,
    table_stride,
    window,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    N_PARTS: tl.constexpr,
    LEAST_KEYS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    index = tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    SHARE: tl.constexpr = HEADS // KV_HEADS
    segment = index
    if segments is not None:
        segment = tl.load(segments + index)
        if segment < 0:
            return
    token = tl.load(q_starts + segment).to(tl.int64)
    start, stop = part_of(tl.load(kv_lens + segment).to(tl.int32), part, window, has_window, N_PARTS, LEAST_KEYS)
    at_G = tl.arange(0, BLOCK_G)
    at_D = tl.arange(0, BLOCK_D)
    is_real_GD = (at_G < SHARE)[:, None] & (at_D < HEAD_DIM)[None, :]
    head_G = kv_head * SHARE + at_G
    q_GD = tl.load(q + token * token_stride + head_G[:, None] * head_stride + at_D[None, :], mask=is_real_GD, other=0.0)
    table = tables + segment.to(tl.int64) * table_stride
    peak_G = tl.full([BLOCK_G], float("-inf"), tl.float32)
    mass_G = tl.zeros([BLOCK_G], tl.float32)
    sum_GD = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for n in range(start, stop, BLOCK_N):
        at_N = n + tl.arange(0, BLOCK_N)
        is_seen_N = at_N < stop
        key_N = key_offsets(table, at_N, is_seen_N, kv_head, KV_HEADS, HEAD_DIM, BLOCK_TOKENS)
        is_seen_ND = is_seen_N[:, None] & (at_D < HEAD_DIM)[None, :]
        k_ND = tl.load(kv + key_N[:, None] + at_D[None, :], mask=is_seen_ND, other=0.0).to(q_GD.dtype)
        v_ND = tl.load(kv + values_at + key_N[:, None] + at_D[None, :], mask=is_seen_ND, other=0.0).to(q_GD.dtype)
        score_GN = capped(tl.dot(q_GD, tl.trans(k_ND), input_precision="ieee"), scale, soft_cap, has_cap)
        score_GN = tl.where(is_seen_N[None, :], score_GN, float("-inf"))
        new_peak_G = tl.maximum(peak_G, tl.max(score_GN, axis=1))
        kept_G = tl.exp2(peak_G - new_peak_G)
        weight_GN = tl.exp2(score_GN - new_peak_G[:, None])
        mass_G = mass_G * kept_G + tl.sum(weight_GN, axis=1)
        sum_GD = sum_GD * kept_G[:, None] + tl.dot(weight_GN.to(q_GD.dtype), v_ND, input_precision="ieee")
        peak_G = new_peak_G
    is_empty_G = mass_G == 0.0
    mean_GD = sum_GD / tl.where(is_empty_G, 1.0, mass_G)[:, None]
    lse_G = tl.where(is_empty_G, float("-inf"), (peak_G + tl.log2(mass_G)) * LN_2)
    row_G = token * HEADS + head_G
    if N_PARTS > 1:
        row_G = (index.to(tl.int64) * HEADS + head_G) * N_PARTS + part
    is_used = (N_PARTS == 1) | (start < stop)
    out_at_GD = row_G[:, None] * HEAD_DIM + at_D[None, :]
    tl.store(out + out_at_GD, mean_GD.to(out.dtype.element_ty), mask=is_real_GD & is_used)
    tl.store(lse + row_G, lse_G, mask=(at_G < SHARE) & is_used)


@triton.jit(do_not_specialize=["window", "segments"])
def join_parts(
    part_out,
    part_lse,
    kv_lens,
    q_starts,
    segments,
    out,
    lse,
    window,
    has_window: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    N_PARTS: tl.constexpr,
    LEAST_KEYS: tl.constexpr,
    is_chained: tl.constexpr,
):
    """Parts of one head of one token; those behind the last key are not read."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    index = tl.program_id(0)
    head = tl.program_id(1)
    segment = index
    if segments is not None:
        segment = tl.load(segments + index)
        if segment < 0:
            return
    token = tl.load(q_starts + segment).to(tl.int64)
    kv_len = tl.load(kv_lens + segment).to(tl.int32)
    at_D = tl.arange(0, BLOCK_D)
    row = (index.to(tl.int64) * HEADS + head) * N_PARTS
    first, stop = part_of(kv_len, 0, window, has_window, N_PARTS, LEAST_KEYS)
    n_used = tl.where(stop > first, tl.cdiv(kv_len - first, tl.maximum(stop - first, 1)), 0)
    at_P = tl.arange(0, N_PARTS)
    is_used_P = at_P < n_used
    lse_P = tl.load(part_lse + row + at_P, mask=is_used_P, other=float("-inf"))
    is_real_PD = is_used_P[:, None] & (at_D < HEAD_DIM)[None, :]
    out_PD = tl.load(part_out + (row + at_P)[:, None] * HEAD_DIM + at_D[None, :], mask=is_real_PD, other=0.0)
    peak = tl.max(lse_P, axis=0)
    is_empty = peak == float("-inf")
    weight_P = tl.exp(lse_P - tl.where(is_empty, 0.0, peak))
    mass = tl.sum(weight_P, axis=0)
    mean_D = tl.sum(out_PD * weight_P[:, None], axis=0) / tl.where(is_empty, 1.0, mass)
    at = token * HEADS + head
    tl.store(out + at * HEAD_DIM + at_D, mean_D.to(out.dtype.element_ty), mask=at_D < HEAD_DIM)
    tl.store(lse + at, tl.where(is_empty, float("-inf"), peak + tl.log(tl.where(is_empty, 1.0, mass))))


@triton.jit
def _attend_tile(
    q_MD,
    kv,
    table,
    values_at,
    position_M,
    peak_M,
    mass_M,
    sum_MD,
    start,
    stop,
    kv_len,
    kv_head,
    scale,
    soft_cap,
    window,
    is_masked: tl.constexpr,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Keys [start, stop), in tiles. Not masked: every token sees all of them."""
    at_D = tl.arange(0, BLOCK_D)
    for n in range(start, stop, BLOCK_N):
        at_N = n + tl.arange(0, BLOCK_N)
        is_there_N = at_N < kv_len
        key_N = key_offsets(table, at_N, is_there_N, kv_head, KV_HEADS, HEAD_DIM, BLOCK_TOKENS)
        is_there_ND = is_there_N[:, None] & (at_D < HEAD_DIM)[None, :]
        if BLOCK_D == HEAD_DIM and not is_masked:
            k_ND = tl.load(kv + key_N[:, None] + at_D[None, :]).to(q_MD.dtype)
            v_ND = tl.load(kv + values_at + key_N[:, None] + at_D[None, :]).to(q_MD.dtype)
        else:
            k_ND = tl.load(kv + key_N[:, None] + at_D[None, :], mask=is_there_ND, other=0.0).to(q_MD.dtype)
            v_ND = tl.load(kv + values_at + key_N[:, None] + at_D[None, :], mask=is_there_ND, other=0.0).to(q_MD.dtype)
        score_MN = capped(tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee"), scale, soft_cap, has_cap)
        if is_masked:
            is_seen_MN = at_N[None, :] <= position_M[:, None]
            if has_window:
                is_seen_MN = is_seen_MN & (at_N[None, :] > position_M[:, None] - window)
            score_MN = tl.where(is_seen_MN, score_MN, float("-inf"))
        new_peak_M = tl.maximum(peak_M, tl.max(score_MN, axis=1))
        base_M = new_peak_M
        if is_masked:  # a token that has seen no key yet
            base_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)
        kept_M = tl.exp2(peak_M - base_M)
        weight_MN = tl.exp2(score_MN - base_M[:, None])
        mass_M = mass_M * kept_M + tl.sum(weight_MN, axis=1)
        sum_MD = sum_MD * kept_M[:, None]
        sum_MD = tl.dot(weight_MN.to(q_MD.dtype), v_ND, sum_MD, input_precision="ieee")
        peak_M = new_peak_M
    return peak_M, mass_M, sum_MD


@triton.jit(do_not_specialize=["table_stride", "window", "tile_segments", "tile_firsts"])
def long_segments(
    q,
    kv,
    tables,
    kv_lens,
    q_starts,
    tile_segments,
    tile_firsts,
    out,
    lse,
    scale,
    soft_cap,
    token_stride,
    head_stride,
    values_at,
    table_stride,
    window,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    head = tl.program_id(0)
    tile = tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    segment = tl.load(tile_segments + tile)
    if segment < 0:
        return
    first = tl.load(tile_firsts + tile)
    q_start = tl.load(q_starts + segment).to(tl.int32)
    q_len = tl.load(q_starts + segment + 1).to(tl.int32) - q_start
    kv_len = tl.load(kv_lens + segment).to(tl.int32)
    at_M = first + tl.arange(0, BLOCK_M)
    at_D = tl.arange(0, BLOCK_D)
    is_real_MD = (at_M < q_len)[:, None] & (at_D < HEAD_DIM)[None, :]
    token_M = (q_start + at_M).to(tl.int64)
    q_at_MD = token_M[:, None] * token_stride + head * head_stride + at_D[None, :]
    q_MD = tl.load(q + q_at_MD, mask=is_real_MD, other=0.0)
    table = tables + segment.to(tl.int64) * table_stride
    position_M = kv_len - q_len + at_M
    first_position = kv_len - q_len + first
    stop = tl.minimum(kv_len, first_position + BLOCK_M)
    peak_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass_M = tl.zeros([BLOCK_M], tl.float32)
    sum_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    start = 0
    if has_window:
        start = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
    else:
        whole = tl.maximum(first_position + 1, 0) // BLOCK_N * BLOCK_N
        peak_M, mass_M, sum_MD = _attend_tile(
            q_MD, kv, table, values_at, position_M, peak_M, mass_M, sum_MD, 0, whole, kv_len, kv_head, scale,
            soft_cap, window,
            False, has_window, has_cap, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_D, BLOCK_N,
        )  # fmt: skip
        start = whole
    peak_M, mass_M, sum_MD = _attend_tile(
        q_MD, kv, table, values_at, position_M, peak_M, mass_M, sum_MD, start, stop, kv_len, kv_head, scale,
        soft_cap, window,
        True, has_window, has_cap, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    is_empty_M = mass_M == 0.0
    mean_MD = sum_MD / tl.where(is_empty_M, 1.0, mass_M)[:, None]
    lse_M = tl.where(is_empty_M, float("-inf"), (peak_M + tl.log2(mass_M)) * LN_2)
    out_at_MD = (token_M[:, None] * HEADS + head) * HEAD_DIM + at_D[None, :]
    tl.store(out + out_at_MD, mean_MD.to(out.dtype.element_ty), mask=is_real_MD)
    tl.store(lse + token_M * HEADS + head, lse_M, mask=at_M < q_len)
