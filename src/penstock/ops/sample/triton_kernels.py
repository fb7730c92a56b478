"""The kernels behind `triton.py`. A logit's `key` is an integer that orders as the logit does.

Arguments by row may be parts of a packed array, whose alignment changes from batch to batch: they are not specialized.

Shape letters: P tokens of a piece of the vocabulary, B pieces.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from penstock.ops.chain import let_next_start, wait_for_inputs
from penstock.ops.sample import reference

IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
WEIGHT_SCALE = tl.constexpr(2.0**reference.WEIGHT_BITS)
GOLDEN = tl.constexpr(reference.GOLDEN + 2**64)
MIX_A = tl.constexpr(reference.MIX_A + 2**64)
MIX_B = tl.constexpr(reference.MIX_B + 2**64)
LEAST_KEY = tl.constexpr(-(2**31))


@triton.jit
def mixed(z):
    z = (z ^ (z >> 30)) * MIX_A
    z = (z ^ (z >> 27)) * MIX_B
    return z ^ (z >> 31)


@triton.jit
def uniform(seed, index):
    """See `reference.uniform`."""
    start = mixed(seed.to(tl.uint64, bitcast=True) + GOLDEN)
    bits = mixed(start + (index + 1).to(tl.uint64, bitcast=True) * GOLDEN)
    return (bits >> 11).to(tl.int64).to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def key_of(logit):
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)  # the zeros are equal
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def load_piece(logits, row, piece, vocab_size, PIECE: tl.constexpr):
    at_P = piece * PIECE + tl.arange(0, PIECE)
    is_token_P = at_P < vocab_size
    logit_P = tl.load(logits + row.to(tl.int64) * vocab_size + at_P, mask=is_token_P, other=float("-inf"))
    return logit_P.to(tl.float32), at_P, is_token_P


@triton.jit
def odds_of(logit_P, top, temperature):
    """See `reference.odds`."""
    heat = tl.where(temperature <= 0, 1.0, temperature)
    scaled_P = tl.div_rn(logit_P - top, heat + tl.zeros_like(logit_P))
    if IS_INTERPRETED:
        return tl.exp(scaled_P)
    return libdevice.exp(scaled_P)  # as exact as that of torch, unlike tl.exp


@triton.jit
def weights_of(logit_P, is_token_P, top, temperature):
    return tl.where(is_token_P, (odds_of(logit_P, top, temperature) * WEIGHT_SCALE).to(tl.int64), 0)


@triton.jit
def top_of_row(top, row, n_pieces, BLOCK_B: tl.constexpr):
    at_B = tl.arange(0, BLOCK_B)
    return tl.max(tl.load(top + row * n_pieces + at_B, mask=at_B < n_pieces, other=float("-inf")), axis=0)


@triton.jit
def top_of_pieces(logits, top, top_id, vocab_size, n_pieces, PIECE: tl.constexpr, is_chained: tl.constexpr):
    """The largest logit of a piece, and the lowest id that has it."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row, piece = tl.program_id(0), tl.program_id(1)
    logit_P, at_P, is_token_P = load_piece(logits, row, piece, vocab_size, PIECE)
    best = tl.max(logit_P, axis=0)
    is_best_P = (logit_P == best) & is_token_P
    tl.store(top + row * n_pieces + piece, best)
    tl.store(top_id + row * n_pieces + piece, tl.min(tl.where(is_best_P, at_P, vocab_size), axis=0))


@triton.jit
def count_from(logits, row, key, vocab_size, n_pieces, PIECE: tl.constexpr):
    """How many tokens have at least this key."""
    count = tl.full([], 0, tl.int32)
    for piece in range(n_pieces):
        logit_P, _, is_token_P = load_piece(logits, row, piece, vocab_size, PIECE)
        count += tl.sum(((key_of(logit_P) >= key) & is_token_P).to(tl.int32), axis=0)
    return count


@triton.jit
def mass_from(logits, row, key, top, temperature, vocab_size, n_pieces, PIECE: tl.constexpr):
    """The weight of those."""
    mass = tl.full([], 0, tl.int64)
    for piece in range(n_pieces):
        logit_P, _, is_token_P = load_piece(logits, row, piece, vocab_size, PIECE)
        is_in_P = is_token_P & (key_of(logit_P) >= key)
        mass += tl.sum(weights_of(logit_P, is_in_P, top, temperature), axis=0)
    return mass


@triton.jit(do_not_specialize=["temperatures", "top_ks", "top_ps"])
def find_edges(
    logits,
    top,
    temperatures,
    top_ks,
    top_ps,
    edges,
    edge_ids,
    vocab_size,
    n_pieces,
    PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    is_chained: tl.constexpr,
):
    """The key of the last token that top-k and top-p keep, and the last id with that key that stays."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row = tl.program_id(0)
    best = top_of_row(top, row, n_pieces, BLOCK_B)
    best_key = key_of(best).to(tl.int64)
    temperature = tl.load(temperatures + row)
    edge = tl.full([], LEAST_KEY, tl.int64)
    left = vocab_size + 0  # of the tokens at the edge, so many stay
    is_hot = temperature > 0
    if top_ks is not None:
        k = tl.load(top_ks + row)
        if is_hot & (k > 0) & (k < vocab_size):
            low, high = edge, best_key
            while low < high:
                middle = low + (high - low + 1) // 2
                if count_from(logits, row, middle, vocab_size, n_pieces, PIECE) >= k:
                    low = middle
                else:
                    high = middle - 1
            edge = low
            left = (k - count_from(logits, row, edge + 1, vocab_size, n_pieces, PIECE)).to(tl.int32)
    if top_ps is not None:
        p = tl.load(top_ps + row)
        if is_hot & (p < 1.0):
            at_edge = tl.full([], 0, tl.int64)  # what top-k leaves at its edge
            above = mass_from(logits, row, edge + 1, best, temperature, vocab_size, n_pieces, PIECE)
            if left < vocab_size:
                edge_bits = edge.to(tl.int32)
                edge_logit = (edge_bits ^ ((edge_bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
                one = (odds_of(edge_logit + tl.zeros([1], tl.float32), best, temperature) * WEIGHT_SCALE).to(tl.int64)
                at_edge = tl.sum(one, axis=0) * left
            total = above + at_edge
            limit = p.to(tl.float64) * total.to(tl.float64)
            if above.to(tl.float64) >= limit:  # else the edge of top-k stays the edge, with fewer of its tokens
                low, high = edge + 1, best_key
                while low < high:
                    middle = low + (high - low + 1) // 2
                    mass = mass_from(logits, row, middle, best, temperature, vocab_size, n_pieces, PIECE)
                    if mass.to(tl.float64) >= limit:
                        low = middle
                    else:
                        high = middle - 1
                edge = low
                above = mass_from(logits, row, edge + 1, best, temperature, vocab_size, n_pieces, PIECE)
                left = vocab_size + 0
            edge_bits = edge.to(tl.int32)
            edge_logit = (edge_bits ^ ((edge_bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
            one = (odds_of(edge_logit + tl.zeros([1], tl.float32), best, temperature) * WEIGHT_SCALE).to(tl.int64)
            each = tl.sum(one, axis=0)
            needed = (limit - above.to(tl.float64)) / tl.maximum(each, 1).to(tl.float64)
            count = needed.to(tl.int64)
            count += ((above + count * each).to(tl.float64) < limit).to(tl.int64)
            left = tl.minimum(left, tl.maximum(count, 1)).to(tl.int32)
    edge_id = vocab_size + 0
    if left < vocab_size:
        seen = tl.full([], 0, tl.int32)
        for piece in range(n_pieces):
            logit_P, at_P, is_token_P = load_piece(logits, row, piece, vocab_size, PIECE)
            is_edge_P = ((key_of(logit_P).to(tl.int64) == edge) & is_token_P).to(tl.int32)
            place_P = seen + tl.cumsum(is_edge_P, axis=0)
            edge_id = tl.minimum(
                edge_id, tl.min(tl.where((is_edge_P > 0) & (place_P == left), at_P, vocab_size), axis=0)
            )
            seen += tl.sum(is_edge_P, axis=0)
    tl.store(edges + row, edge.to(tl.int32))
    tl.store(edge_ids + row, edge_id)


@triton.jit
def kept_weights(logits, row, piece, best, temperature, min_ps, edges, edge_ids, vocab_size, PIECE: tl.constexpr):
    """Weights of a piece after all filters."""
    logit_P, at_P, is_kept_P = load_piece(logits, row, piece, vocab_size, PIECE)
    if edges is not None:
        key_P = key_of(logit_P)
        edge = tl.load(edges + row)
        is_kept_P = is_kept_P & ((key_P > edge) | ((key_P == edge) & (at_P <= tl.load(edge_ids + row))))
    odds_P = odds_of(logit_P, best, temperature)
    if min_ps is not None:
        is_kept_P = is_kept_P & (odds_P >= tl.load(min_ps + row))
    return tl.where(is_kept_P, (odds_P * WEIGHT_SCALE).to(tl.int64), 0)


@triton.jit(do_not_specialize=["temperatures", "min_ps"])
def sum_pieces(
    logits,
    top,
    temperatures,
    min_ps,
    edges,
    edge_ids,
    mass,
    vocab_size,
    n_pieces,
    PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    is_chained: tl.constexpr,
):
    """The weight of a piece."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row, piece = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        best = top_of_row(top, row, n_pieces, BLOCK_B)
        weight_P = kept_weights(logits, row, piece, best, temperature, min_ps, edges, edge_ids, vocab_size, PIECE)
        tl.store(mass + row * n_pieces + piece, tl.sum(weight_P, axis=0))


@triton.jit(do_not_specialize=["temperatures", "min_ps", "seeds", "indices"])
def choose(
    logits,
    top,
    temperatures,
    min_ps,
    edges,
    edge_ids,
    top_id,
    mass,
    seeds,
    indices,
    drawn,
    vocab_size,
    n_pieces,
    PIECE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    is_chained: tl.constexpr,
):
    """The token in which the row's uniform number falls: first its piece, then its place there."""
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row = tl.program_id(0)
    at_B = tl.arange(0, BLOCK_B)
    is_piece_B = at_B < n_pieces
    temperature = tl.load(temperatures + row)
    best = top_of_row(top, row, n_pieces, BLOCK_B)
    if temperature > 0:
        mass_B = tl.load(mass + row * n_pieces + at_B, mask=is_piece_B, other=0)
        total = tl.sum(mass_B, axis=0)
        target = (uniform(tl.load(seeds + row), tl.load(indices + row)) * total.to(tl.float64)).to(tl.int64)
        target = tl.minimum(target, total - 1)
        is_before_B = is_piece_B & (tl.cumsum(mass_B, axis=0) <= target)
        piece = tl.minimum(tl.sum(is_before_B.to(tl.int32), axis=0), n_pieces - 1)
        before = tl.sum(tl.where(is_before_B, mass_B, 0), axis=0)
        weight_P = kept_weights(logits, row, piece, best, temperature, min_ps, edges, edge_ids, vocab_size, PIECE)
        is_passed_P = before + tl.cumsum(weight_P, axis=0) <= target
        token = piece * PIECE + tl.sum(is_passed_P.to(tl.int32), axis=0)
        tl.store(drawn + row, tl.minimum(token, vocab_size - 1).to(tl.int64))
    else:
        top_B = tl.load(top + row * n_pieces + at_B, mask=is_piece_B, other=float("-inf"))
        top_id_B = tl.load(top_id + row * n_pieces + at_B, mask=is_piece_B, other=vocab_size)
        token = tl.min(tl.where((top_B == best) & is_piece_B, top_id_B, vocab_size), axis=0)
        tl.store(drawn + row, tl.minimum(token, vocab_size - 1).to(tl.int64))
