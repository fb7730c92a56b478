"""Sampling on the CPU: the same tokens as the reference, without sorting a vocabulary.

A filter keeps the first n tokens of (logit descending, id ascending), and n follows from the largest logits alone. So
a partial sort of the values is enough: to top_k places, or to as many as hold the mass of top-p. Only rows that
filter pay for it.

Shape letters: N rows, V vocabulary, C candidates: the largest logits of each row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.sample.reference import draw, odds, weigh

FIRST_CANDIDATES = 64  # enough for the usual top_k and for the top-p of a confident model
GROWTH = 8
CHUNK_ELEMENTS = 2**19  # logits worked on at a time: what is made of them stays in the cache


def sample(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    min_p_N: Tensor | None,
    seed_N: Tensor,
    index_N: Tensor,
) -> Tensor:
    """See `reference.sample`."""
    n_rows, vocab_size = logits_NV.shape
    chunk_rows = max(1, CHUNK_ELEMENTS // vocab_size)
    cuts = [slice(at, at + chunk_rows) for at in range(0, max(1, n_rows), chunk_rows)]
    drawn = [
        _sample(
            logits_NV[cut].float(),
            temperature_N[cut],
            None if top_k_N is None else top_k_N[cut],
            None if top_p_N is None else top_p_N[cut],
            None if min_p_N is None else min_p_N[cut],
            seed_N[cut],
            index_N[cut],
        )
        for cut in cuts
    ]
    return drawn[0] if len(drawn) == 1 else torch.cat(drawn)


def _sample(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    min_p_N: Tensor | None,
    seed_N: Tensor,
    index_N: Tensor,
) -> Tensor:
    greedy_N = logits_NV.argmax(dim=-1)
    is_greedy_N = temperature_N <= 0
    if is_greedy_N.all():
        return greedy_N
    heat_N = torch.where(is_greedy_N, 1.0, temperature_N)
    odds_NV = odds(logits_NV, heat_N)
    weights_NV = weigh(odds_NV)
    if top_k_N is not None or top_p_N is not None:
        n_rows, vocab_size = logits_NV.shape
        most_N = torch.full((n_rows,), vocab_size) if top_k_N is None else _at_most(top_k_N, vocab_size)
        p_N = torch.ones(n_rows, dtype=torch.float64) if top_p_N is None else top_p_N.double()
        rows = ((most_N < vocab_size) | (p_N < 1)).logical_and(~is_greedy_N).nonzero().squeeze(1)
        if len(rows):
            weights_NV[rows] = _keep_top(weights_NV[rows], logits_NV[rows], heat_N[rows], most_N[rows], p_N[rows])
    if min_p_N is not None:
        weights_NV = torch.where(odds_NV >= min_p_N.unsqueeze(1), weights_NV, 0)
    return torch.where(is_greedy_N, greedy_N, draw(weights_NV, seed_N, index_N))


def _at_most(top_k_N: Tensor, vocab_size: int) -> Tensor:
    return torch.where(top_k_N <= 0, vocab_size, top_k_N).clamp(max=vocab_size)


def _keep_top(weights_NV: Tensor, logits_NV: Tensor, heat_N: Tensor, most_N: Tensor, p_N: Tensor) -> Tensor:
    vocab_size = logits_NV.shape[1]
    candidates = min(vocab_size, FIRST_CANDIDATES)
    while True:
        top_NC = logits_NV.topk(candidates, dim=-1).values
        kept_N, is_enough = _count_kept(weigh(odds(top_NC, heat_N)), weights_NV, most_N, p_N)
        if is_enough or candidates == vocab_size:
            return _keep_first(weights_NV, logits_NV, top_NC, kept_N)
        candidates = min(vocab_size, candidates * GROWTH)


def _count_kept(top_NC: Tensor, weights_NV: Tensor, most_N: Tensor, p_N: Tensor) -> tuple[Tensor, bool]:
    """How many places of the sorted row stay, and whether the candidates were enough to tell.

    top_NC: weights of the candidates, largest first.
    """
    candidates = top_NC.shape[1]
    top_NC = torch.where(torch.arange(candidates) < most_N.unsqueeze(1), top_NC, 0)
    mass_NC = top_NC.cumsum(dim=-1)
    is_cut_N = most_N <= candidates  # by top-k, so the mass of all that top-k keeps is known
    total_N = torch.where(most_N < weights_NV.shape[1], mass_NC[:, -1], weights_NV.sum(dim=-1))
    limit_N = p_N * total_N
    kept_N = ((mass_NC - top_NC) < limit_N.unsqueeze(1)).sum(dim=-1).minimum(most_N).clamp(min=1)
    is_told_N = is_cut_N | ((most_N == weights_NV.shape[1]) & (mass_NC[:, -1] >= limit_N))
    return kept_N, bool(is_told_N.all())


def _keep_first(weights_NV: Tensor, logits_NV: Tensor, top_NC: Tensor, kept_N: Tensor) -> Tensor:
    """Zero all but the first `kept_N` of (logit descending, id ascending)."""
    edge_N1 = top_NC.gather(1, kept_N.unsqueeze(1) - 1)
    is_above_NV, is_edge_NV = logits_NV > edge_N1, logits_NV == edge_N1
    left_N1 = kept_N.unsqueeze(1) - is_above_NV.sum(dim=-1, keepdim=True)  # of the equals at the edge
    is_kept_NV = is_above_NV | (is_edge_NV & (is_edge_NV.cumsum(dim=-1) <= left_N1))
    return torch.where(is_kept_NV, weights_NV, 0)
