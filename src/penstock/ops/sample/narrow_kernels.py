"""Finds where top-k and top-p end with many programs per row, digit by digit.

Theory. `triton_kernels.find_edges` halves the range of keys, one program per row: some 70 passes of one program over a
vocabulary, which takes as long for 1 row as for 64. Here a row's pieces are looked at by programs of their own, and a
pass settles four bits of the key instead of one: each program counts (or weighs) what its piece has from each of 16
thresholds on, and the programs of the next pass add the pieces up and take the largest threshold that still has enough.
Sums are integers, so nothing depends on who adds them up in which order. Eight passes settle a key.

Keys are counted from the least one, as `offset = key - LEAST_KEY`, so that digits are of a number that is not negative.
Shape letters: N rows, B pieces of the vocabulary, P tokens of a piece, W thresholds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.ops.chain import let_next_start, wait_for_inputs
from penstock.ops.sample.triton_kernels import (
    LEAST_KEY,
    WEIGHT_SCALE,
    key_of,
    load_piece,
    odds_of,
    top_of_row,
    weights_of,
)

DIGIT_BITS = 4
PASSES = 32 // DIGIT_BITS
BITS_IN_KERNEL = tl.constexpr(DIGIT_BITS)
WIDTH = tl.constexpr(1 << DIGIT_BITS)


@triton.jit
def row_sum(parts, row, n_pieces, BLOCK_B: tl.constexpr):
    at_B = tl.arange(0, BLOCK_B)
    return tl.sum(tl.load(parts + row * n_pieces + at_B, mask=at_B < n_pieces, other=0).to(tl.int64), axis=0)


@triton.jit
def weight_at(key, best, temperature):
    """Of a token with this key."""
    bits = key.to(tl.int32)
    logit = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.sum((odds_of(logit + tl.zeros([1], tl.float32), best, temperature) * WEIGHT_SCALE).to(tl.int64), axis=0)


@triton.jit
def is_cut_by_k(top_ks, row, temperature, vocab_size):
    if top_ks is None:
        return temperature > float("inf")
    k = tl.load(top_ks + row)
    return (temperature > 0) & (k > 0) & (k < vocab_size)


@triton.jit
def left_at_k(top_ks, counts, row, temperature, vocab_size, n_pieces, BLOCK_B: tl.constexpr):
    """How many of the tokens at the edge of top-k stay; the vocabulary where it cuts nothing. counts: beyond it."""
    left = tl.full([], 0, tl.int64) + vocab_size
    if top_ks is not None:
        is_cut = is_cut_by_k(top_ks, row, temperature, vocab_size)
        if is_cut:
            left = tl.load(top_ks + row) - row_sum(counts, row, n_pieces, BLOCK_B)
    return left


@triton.jit
def mass_wanted(top_ks, p, edges, counts, masses, row, best, temperature, vocab_size, n_pieces, BLOCK_B: tl.constexpr):
    """The mass that top-p keeps of what top-k left, in float64 as the reference has it."""
    left = left_at_k(top_ks, counts, row, temperature, vocab_size, n_pieces, BLOCK_B)
    total = row_sum(masses, row, n_pieces, BLOCK_B)
    if left < vocab_size:
        total += weight_at(tl.load(edges + row), best, temperature) * left
    return p.to(tl.float64) * total.to(tl.float64)


@triton.jit
def offset_after(prefixes, parts, row, n_rows, n_pieces, n_passes, wanted, BLOCK_B: tl.constexpr):
    """The digits that are settled after `n_passes` passes, as the beginning of an offset."""
    offset = tl.full([], 0, tl.int64)
    if n_passes > 0:
        if n_passes > 1:
            offset = tl.load(prefixes + (n_passes - 1) * n_rows + row)
        at_B, at_W = tl.arange(0, BLOCK_B), tl.arange(0, WIDTH)
        at_BW = (row * n_pieces + at_B)[:, None] * WIDTH + at_W[None, :]
        part_BW = tl.load(parts + at_BW, mask=(at_B < n_pieces)[:, None], other=0)
        has_enough_W = (tl.sum(part_BW, axis=0).to(tl.float64) >= wanted) & (at_W > 0)
        digit = tl.sum(has_enough_W.to(tl.int64), axis=0)
        offset += digit << (tl.full([], 32, tl.int64) - n_passes * BITS_IN_KERNEL)
    return offset


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps", "n_rows", "n_passes", "parts_in", "parts_out"])
def narrow(
    logits,
    top,
    temperatures,
    top_ks,
    top_ps,
    edges,
    counts,
    masses,
    prefixes,
    parts_in,
    parts_out,
    vocab_size,
    n_rows,
    n_pieces,
    n_passes,
    is_mass: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    is_chained: tl.constexpr,
):
    """One pass over a piece. is_mass: weigh for top-p; else count for top-k. edges, counts, masses: of top-k."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row, piece = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    best = top_of_row(top, row, n_pieces, BLOCK_B)
    if is_mass:
        p = tl.load(top_ps + row)
        is_cut = (temperature > 0) & (p < 1.0)
    else:
        is_cut = is_cut_by_k(top_ks, row, temperature, vocab_size)
    if is_cut:
        if is_mass:
            wanted = mass_wanted(
                top_ks, p, edges, counts, masses, row, best, temperature, vocab_size, n_pieces, BLOCK_B
            )
        else:
            wanted = tl.load(top_ks + row).to(tl.float64)
        offset = offset_after(prefixes, parts_in, row, n_rows, n_pieces, n_passes, wanted, BLOCK_B)
        if piece == 0:
            tl.store(prefixes + n_passes * n_rows + row, offset)
        logit_P, _, is_token_P = load_piece(logits, row, piece, vocab_size, PIECE)
        offset_P = key_of(logit_P).to(tl.int64) - LEAST_KEY
        value_P = is_token_P.to(tl.int64)
        if is_mass:
            value_P = weights_of(logit_P, is_token_P, best, temperature)
        at_W = tl.arange(0, WIDTH)
        step = tl.full([], 32, tl.int64) - (n_passes + 1) * BITS_IN_KERNEL
        found_W = tl.zeros([WIDTH], tl.int64)
        for digit in tl.static_range(1, WIDTH):
            threshold = offset + (tl.full([], digit, tl.int64) << step)
            found = tl.sum(tl.where(offset_P >= threshold, value_P, 0), axis=0)
            found_W = tl.where(at_W == digit, found, found_W)
        tl.store(parts_out + (row * n_pieces + piece) * WIDTH + at_W, found_W)


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps", "n_rows", "parts"])
def measure(
    logits,
    top,
    temperatures,
    top_ks,
    top_ps,
    edges_in,
    counts_in,
    masses_in,
    prefixes,
    parts,
    edges,
    counts,
    masses,
    ties,
    vocab_size,
    n_rows,
    n_pieces,
    n_passes,
    is_mass: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    is_chained: tl.constexpr,
):
    """The edge that the passes found, and of a piece: how many tokens lie beyond it and their weight, how many on it.

    is_mass: of top-p, which stays at the edge of top-k (edges_in) where what lies beyond that is not enough.
    """
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row, piece = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    best = top_of_row(top, row, n_pieces, BLOCK_B)
    edge = tl.full([], LEAST_KEY, tl.int64)
    if is_mass:
        p = tl.load(top_ps + row)
        edge = tl.load(edges_in + row).to(tl.int64)
        if (temperature > 0) & (p < 1.0):
            wanted = mass_wanted(
                top_ks, p, edges_in, counts_in, masses_in, row, best, temperature, vocab_size, n_pieces, BLOCK_B
            )
            if row_sum(masses_in, row, n_pieces, BLOCK_B).to(tl.float64) >= wanted:
                edge = offset_after(prefixes, parts, row, n_rows, n_pieces, n_passes, wanted, BLOCK_B) + LEAST_KEY
    elif top_ks is not None:
        is_cut = is_cut_by_k(top_ks, row, temperature, vocab_size)
        if is_cut:
            wanted = tl.load(top_ks + row).to(tl.float64)
            edge = offset_after(prefixes, parts, row, n_rows, n_pieces, n_passes, wanted, BLOCK_B) + LEAST_KEY
    logit_P, _, is_token_P = load_piece(logits, row, piece, vocab_size, PIECE)
    key_P = key_of(logit_P).to(tl.int64)
    is_beyond_P = is_token_P & (key_P > edge)
    at = row * n_pieces + piece
    tl.store(counts + at, tl.sum(is_beyond_P.to(tl.int32), axis=0))
    tl.store(masses + at, tl.sum(weights_of(logit_P, is_beyond_P, best, temperature), axis=0))
    tl.store(ties + at, tl.sum((is_token_P & (key_P == edge)).to(tl.int32), axis=0))
    if piece == 0:
        tl.store(edges + row, edge.to(tl.int32))


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps"])
def last_ids(
    logits,
    top,
    temperatures,
    top_ks,
    top_ps,
    edges_k,
    counts_k,
    masses_k,
    edges,
    counts,
    masses,
    ties,
    edge_ids,
    vocab_size,
    n_pieces,
    PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    is_chained: tl.constexpr,
):
    """The last id with the key of the edge that stays."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row = tl.program_id(0)
    temperature = tl.load(temperatures + row)
    best = top_of_row(top, row, n_pieces, BLOCK_B)
    edge = tl.load(edges + row)
    left = left_at_k(top_ks, counts_k, row, temperature, vocab_size, n_pieces, BLOCK_B)
    if top_ps is not None:
        p = tl.load(top_ps + row)
        if (temperature > 0) & (p < 1.0):
            wanted = mass_wanted(
                top_ks, p, edges_k, counts_k, masses_k, row, best, temperature, vocab_size, n_pieces, BLOCK_B
            )
            if edge != tl.load(edges_k + row):
                left = tl.full([], 0, tl.int64) + vocab_size
            beyond = row_sum(masses, row, n_pieces, BLOCK_B)
            each = weight_at(edge, best, temperature)
            needed = ((wanted - beyond.to(tl.float64)) / tl.maximum(each, 1).to(tl.float64)).to(tl.int64)
            needed += ((beyond + needed * each).to(tl.float64) < wanted).to(tl.int64)
            left = tl.minimum(left, tl.maximum(needed, 1))
    edge_id = vocab_size + 0
    if left < vocab_size:
        at_B = tl.arange(0, BLOCK_B)
        tie_B = tl.load(ties + row * n_pieces + at_B, mask=at_B < n_pieces, other=0).to(tl.int64)
        upto_B = tl.cumsum(tie_B, axis=0)
        piece = tl.sum((upto_B < left).to(tl.int32), axis=0)
        if piece < n_pieces:
            before = tl.sum(tl.where(at_B < piece, tie_B, 0), axis=0)
            logit_P, at_P, is_token_P = load_piece(logits, row, piece, vocab_size, PIECE)
            is_tie_P = (is_token_P & (key_of(logit_P) == edge)).to(tl.int64)
            is_last_P = (is_tie_P > 0) & (before + tl.cumsum(is_tie_P, axis=0) == left)
            edge_id = tl.min(tl.where(is_last_P, at_P, vocab_size), axis=0)
    tl.store(edge_ids + row, edge_id)
