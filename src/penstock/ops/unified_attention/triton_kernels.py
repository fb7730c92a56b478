"""The kernels behind `triton.py`: parts of the keys that know nothing of each other, and the sum of them.

Scores are kept in units of log2, so that the exponential is one instruction; phi and the bounds come in these units.

Shape letters: G query heads that share a KV head, N keys of a tile, D head dim, P parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.chain import let_next_start, wait_for_inputs
from penstock.ops.paged_attention.triton_kernels import LN_2, capped, key_offsets, part_of

# flags of a part, as in reference.py; ANY_BELOW for the strict rule only
TOO_HIGH, ANY_ABOVE, ANY_BELOW = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)


@triton.jit(do_not_specialize=["table_stride", "window"])
def unified_parts(
    q,
    kv,
    tables,
    kv_lens,
    num,
    den,
    flags,
    phi,
    low,
    high,
    scale,
    soft_cap,
    token_stride,
    head_stride,
    values_at,
    table_stride,
    window,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    is_strict: tl.constexpr,
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
    """Sums of one part for the query heads of a KV head: no maximum, so a tile waits for none before it."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    SHARE: tl.constexpr = HEADS // KV_HEADS
    start, stop = part_of(tl.load(kv_lens + token).to(tl.int32), part, window, has_window, N_PARTS, LEAST_KEYS)
    at_G = tl.arange(0, BLOCK_G)
    at_D = tl.arange(0, BLOCK_D)
    head_G = kv_head * SHARE + at_G
    is_real_GD = (at_G < SHARE)[:, None] & (at_D < HEAD_DIM)[None, :]
    q_GD = tl.load(q + token * token_stride + head_G[:, None] * head_stride + at_D[None, :], mask=is_real_GD, other=0.0)
    table = tables + token * table_stride
    den_GN = tl.zeros([BLOCK_G, BLOCK_N], tl.float32)
    num_GD = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    most_GN = tl.full([BLOCK_G, BLOCK_N], float("-inf"), tl.float32)
    least_GN = tl.full([BLOCK_G, BLOCK_N], float("inf"), tl.float32)
    for n in range(start, stop, BLOCK_N):
        at_N = n + tl.arange(0, BLOCK_N)
        is_seen_N = at_N < stop
        key_N = key_offsets(table, at_N, is_seen_N, kv_head, KV_HEADS, HEAD_DIM, BLOCK_TOKENS)
        is_seen_ND = is_seen_N[:, None] & (at_D < HEAD_DIM)[None, :]
        k_ND = tl.load(kv + key_N[:, None] + at_D[None, :], mask=is_seen_ND, other=0.0).to(q_GD.dtype)
        v_ND = tl.load(kv + values_at + key_N[:, None] + at_D[None, :], mask=is_seen_ND, other=0.0).to(q_GD.dtype)
        above_GN = capped(tl.dot(q_GD, tl.trans(k_ND), input_precision="ieee"), scale, soft_cap, has_cap) - phi
        above_GN = tl.where(is_seen_N[None, :], above_GN, float("-inf"))
        most_GN = tl.maximum(most_GN, above_GN)
        if is_strict:
            least_GN = tl.minimum(least_GN, tl.where(is_seen_N[None, :], above_GN, float("inf")))
        weight_GN = tl.exp2(above_GN)
        den_GN += weight_GN
        num_GD = tl.dot(weight_GN.to(q_GD.dtype), v_ND, num_GD, input_precision="ieee")
    most_G = tl.max(most_GN, axis=1)
    flags_G = tl.where(most_G < high, 0, TOO_HIGH) + tl.where(most_G > low, ANY_ABOVE, 0)
    if is_strict:
        flags_G += tl.where(tl.min(least_GN, axis=1) > low, 0, ANY_BELOW)
    row_G = (token * HEADS + head_G) * N_PARTS + part
    is_used_G = at_G < tl.where(start < stop, SHARE, 0)
    tl.store(num + row_G[:, None] * HEAD_DIM + at_D[None, :], num_GD, mask=is_used_G[:, None] & is_real_GD)
    tl.store(den + row_G, tl.sum(den_GN, axis=1), mask=is_used_G)
    tl.store(flags + row_G, flags_G.to(tl.uint8), mask=is_used_G)


@triton.jit(do_not_specialize=["table_stride", "window"])
def add_parts(
    q,
    kv,
    tables,
    kv_lens,
    num,
    den,
    flags,
    out,
    lse,
    counts,
    phi,
    scale,
    soft_cap,
    token_stride,
    head_stride,
    values_at,
    table_stride,
    window,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    is_strict: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    N_PARTS: tl.constexpr,
    LEAST_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    is_chained: tl.constexpr,
):
    """One head of one token: the parts added up; or all of it again, where a flag says that the sums are of no use."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    kv_len = tl.load(kv_lens + token).to(tl.int32)
    at_D = tl.arange(0, BLOCK_D)
    at_P = tl.arange(0, N_PARTS)
    row = (token * HEADS + head) * N_PARTS
    first, stop = part_of(kv_len, 0, window, has_window, N_PARTS, LEAST_KEYS)
    n_used = tl.where(stop > first, tl.cdiv(kv_len - first, tl.maximum(stop - first, 1)), 0)
    is_used_P = at_P < n_used
    flags_P = tl.load(flags + row + at_P, mask=is_used_P, other=0).to(tl.int32)
    mass = tl.sum(tl.load(den + row + at_P, mask=is_used_P, other=0.0), axis=0)
    is_real_PD = is_used_P[:, None] & (at_D < HEAD_DIM)[None, :]
    num_PD = tl.load(num + (row + at_P)[:, None] * HEAD_DIM + at_D[None, :], mask=is_real_PD, other=0.0)
    is_bad = tl.max(flags_P & TOO_HIGH, axis=0) > 0
    is_empty = n_used == 0
    if is_strict:
        is_bad = is_bad | (tl.max(flags_P & ANY_BELOW, axis=0) > 0)
    else:
        is_bad = is_bad | ((n_used > 0) & (tl.max(flags_P & ANY_ABOVE, axis=0) == 0))
    mean_D = tl.sum(num_PD, axis=0) / tl.where(is_empty | is_bad, 1.0, mass)
    found = tl.where(is_empty, float("-inf"), (phi + tl.log2(tl.where(is_empty | is_bad, 1.0, mass))) * LN_2)
    if is_bad:
        q_D = tl.load(q + token * token_stride + head * head_stride + at_D, mask=at_D < HEAD_DIM, other=0.0)
        mean_D, found = _again(
            q_D, kv, tables + token * table_stride, kv_len, first, head // (HEADS // KV_HEADS), values_at, scale,
            soft_cap, has_cap, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCK_D, BLOCK_N,
        )  # fmt: skip
        tl.atomic_add(counts, 1)
    if head == 0:
        tl.atomic_add(counts + 1, tl.where(is_empty, 0, HEADS))
    at = token * HEADS + head
    tl.store(out + at * HEAD_DIM + at_D, mean_D.to(out.dtype.element_ty), mask=at_D < HEAD_DIM)
    tl.store(lse + at, found)


@triton.jit
def _again(
    q_D,
    kv,
    table,
    kv_len,
    first,
    kv_head,
    values_at,
    scale,
    soft_cap,
    has_cap: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(mean_D, lse) with the row's own maximum, kept as keys are read. Rare: it need not be fast."""
    at_D = tl.arange(0, BLOCK_D)
    peak = float("-inf")
    mass = 0.0
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    for n in range(first, kv_len, BLOCK_N):
        at_N = n + tl.arange(0, BLOCK_N)
        is_seen_N = at_N < kv_len
        key_N = key_offsets(table, at_N, is_seen_N, kv_head, KV_HEADS, HEAD_DIM, BLOCK_TOKENS)
        is_seen_ND = is_seen_N[:, None] & (at_D < HEAD_DIM)[None, :]
        k_ND = tl.load(kv + key_N[:, None] + at_D[None, :], mask=is_seen_ND, other=0.0).to(q_D.dtype)
        v_ND = tl.load(kv + values_at + key_N[:, None] + at_D[None, :], mask=is_seen_ND, other=0.0).to(q_D.dtype)
        products_ND = k_ND.to(tl.float32) * q_D.to(tl.float32)[None, :]
        score_N = capped(tl.sum(products_ND, axis=1), scale, soft_cap, has_cap)
        score_N = tl.where(is_seen_N, score_N, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score_N, axis=0))
        kept = tl.exp2(peak - new_peak)
        weight_N = tl.exp2(score_N - new_peak)
        mass = mass * kept + tl.sum(weight_N, axis=0)
        sum_D = sum_D * kept + tl.sum(weight_N[:, None] * v_ND.to(tl.float32), axis=0)
        peak = new_peak
    return sum_D / mass, (peak + tl.log2(mass)) * LN_2
