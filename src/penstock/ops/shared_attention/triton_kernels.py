"""The kernels behind `triton.py`. Scores are kept in units of log2; what goes out is a natural log.

Shape letters: M rows of a tile (members of a run with some of their query heads), N keys of a tile, D head dim,
P parts of a run's keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.chain import let_next_start, wait_for_inputs
from penstock.ops.paged_attention.triton_kernels import LN_2, capped, key_offsets


@triton.jit
def shared_runs(
    q,
    kv,
    tables,
    table_starts,
    key_counts,
    member_starts,
    members,
    piece_runs,
    piece_firsts,
    part_out,
    part_lse,
    scale,
    soft_cap,
    token_stride,
    head_stride,
    values_at,
    has_cap: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    N_PARTS: tl.constexpr,
    MEMBERS: tl.constexpr,
    HEADS_EACH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    piece = tl.program_id(0)
    run = tl.load(piece_runs + piece)
    if run >= 0:
        SHARE: tl.constexpr = HEADS // KV_HEADS
        SPLITS: tl.constexpr = (SHARE + HEADS_EACH - 1) // HEADS_EACH
        BLOCK_M: tl.constexpr = MEMBERS * HEADS_EACH
        kv_head = tl.program_id(1) // SPLITS
        split = tl.program_id(1) % SPLITS
        part = tl.program_id(2)
        at_M = tl.arange(0, BLOCK_M)
        at_D = tl.arange(0, BLOCK_D)
        place_M = tl.load(piece_firsts + piece) + at_M // HEADS_EACH
        shared_head_M = split * HEADS_EACH + at_M % HEADS_EACH
        is_real_M = (place_M < tl.load(member_starts + run + 1)) & (shared_head_M < SHARE)
        is_real_MD = is_real_M[:, None] & (at_D < HEAD_DIM)[None, :]
        head_M = kv_head * SHARE + shared_head_M
        token_M = tl.load(members + place_M, mask=is_real_M, other=0)
        q_at_M = token_M * token_stride + head_M * head_stride
        q_MD = tl.load(q + q_at_M[:, None] + at_D[None, :], mask=is_real_MD, other=0.0)
        n_keys = tl.load(key_counts + run).to(tl.int32)
        each = tl.cdiv(tl.cdiv(n_keys, N_PARTS), BLOCK_N) * BLOCK_N
        start = part * each
        stop = tl.minimum(start + each, n_keys)
        table = tables + tl.load(table_starts + run)
        peak_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
        mass_M = tl.zeros([BLOCK_M], tl.float32)
        sum_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for n in range(start, stop, BLOCK_N):
            at_N = n + tl.arange(0, BLOCK_N)
            is_there_N = at_N < stop
            key_N = key_offsets(table, at_N, is_there_N, kv_head, KV_HEADS, HEAD_DIM, BLOCK_TOKENS)
            is_there_ND = is_there_N[:, None] & (at_D < HEAD_DIM)[None, :]
            k_ND = tl.load(kv + key_N[:, None] + at_D[None, :], mask=is_there_ND, other=0.0).to(q_MD.dtype)
            v_ND = tl.load(kv + values_at + key_N[:, None] + at_D[None, :], mask=is_there_ND, other=0.0).to(q_MD.dtype)
            score_MN = capped(tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee"), scale, soft_cap, has_cap)
            score_MN = tl.where(is_there_N[None, :], score_MN, float("-inf"))
            new_peak_M = tl.maximum(peak_M, tl.max(score_MN, axis=1))
            kept_M = tl.exp2(peak_M - new_peak_M)
            weight_MN = tl.exp2(score_MN - new_peak_M[:, None])
            mass_M = mass_M * kept_M + tl.sum(weight_MN, axis=1)
            sum_MD = sum_MD * kept_M[:, None]
            sum_MD = tl.dot(weight_MN.to(q_MD.dtype), v_ND, sum_MD, input_precision="ieee")
            peak_M = new_peak_M
        is_empty_M = mass_M == 0.0
        mean_MD = sum_MD / tl.where(is_empty_M, 1.0, mass_M)[:, None]
        lse_M = tl.where(is_empty_M, float("-inf"), (peak_M + tl.log2(tl.where(is_empty_M, 1.0, mass_M))) * LN_2)
        row_M = (place_M.to(tl.int64) * HEADS + head_M) * N_PARTS + part
        tl.store(part_out + row_M[:, None] * HEAD_DIM + at_D[None, :], mean_MD, mask=is_real_MD)
        tl.store(part_lse + row_M, lse_M, mask=is_real_M)


@triton.jit(do_not_specialize=["n_rows"])
def join_runs(
    part_out,
    part_lse,
    places,
    out,
    lse,
    n_rows,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    N_PARTS: tl.constexpr,
    LEVELS: tl.constexpr,
    is_chained: tl.constexpr,
):
    """One head of one token: its own keys, which stand in `out` already, and the parts of each of its runs."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = token * HEADS + head
    at_D = tl.arange(0, BLOCK_D)
    at_P = tl.arange(0, N_PARTS)
    peak = tl.load(lse + at)
    mass = tl.where(peak == float("-inf"), 0.0, 1.0)
    sum_D = tl.load(out + at * HEAD_DIM + at_D, mask=at_D < HEAD_DIM, other=0.0).to(tl.float32) * mass
    for level in tl.static_range(LEVELS):
        place = tl.load(places + level * n_rows + token)
        if place >= 0:
            row_P = (place * HEADS + head) * N_PARTS + at_P
            lse_P = tl.load(part_lse + row_P)
            out_PD = tl.load(
                part_out + row_P[:, None] * HEAD_DIM + at_D[None, :], mask=(at_D < HEAD_DIM)[None, :], other=0.0
            )
            new_peak = tl.maximum(peak, tl.max(lse_P, axis=0))  # a run has a key: never -inf
            kept = tl.exp(peak - new_peak)
            weight_P = tl.exp(lse_P - new_peak)
            mass = mass * kept + tl.sum(weight_P, axis=0)
            sum_D = sum_D * kept + tl.sum(out_PD * weight_P[:, None], axis=0)
            peak = new_peak
    mean_D = sum_D / tl.where(mass == 0.0, 1.0, mass)
    tl.store(out + at * HEAD_DIM + at_D, mean_D.to(out.dtype.element_ty), mask=at_D < HEAD_DIM)
    tl.store(lse + at, peak + tl.log(tl.where(mass == 0.0, 1.0, mass)))
