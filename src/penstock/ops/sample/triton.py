"""Sampling on a GPU without sorting a vocabulary, and without waiting for it: the tokens of the reference.

A filter keeps the first n tokens of (logit descending, id ascending). Those are the tokens above some logit and the
first few that equal it, so top-k and top-p need that logit, not an order: it is found by halving the range of float32
patterns, each time with one pass over the row. Weights are the integers of the reference, so sums are exact in any
order and a row's vocabulary is cut into pieces that programs share.

Shape letters: N rows, V vocabulary, B pieces of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from penstock.ops.chain import chain_options
from penstock.ops.sample.triton_kernels import choose, find_edges, sum_pieces, top_of_pieces

PIECE = 4096
# (logits_NV, top_NB, temperature_N, top_k_N, top_p_N, sizes) -> (key, id) of the last token that stays, int32 [N] each
FindEdges = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Mapping[str, Any]], tuple[Tensor, Tensor]]


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
    return sample_with(halve, logits_NV, temperature_N, top_k_N, top_p_N, min_p_N, seed_N, index_N)


def halve(
    logits_NV: Tensor,
    top_NB: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    sizes: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """A program per row."""
    n_rows, n_pieces = top_NB.shape
    edge_N, edge_id_N = (torch.empty(n_rows, dtype=torch.int32, device=top_NB.device) for _ in range(2))
    find_edges[(n_rows,)](
        logits_NV, top_NB, temperature_N, top_k_N, top_p_N, edge_N, edge_id_N, logits_NV.shape[1], n_pieces,
        **sizes, num_warps=16,
    )  # fmt: skip
    return edge_N, edge_id_N


def sample_with(
    find: FindEdges,
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    min_p_N: Tensor | None,
    seed_N: Tensor,
    index_N: Tensor,
) -> Tensor:
    """`sample`, with the key and the id of each row's last token found by `find`."""
    n_rows, vocab_size = logits_NV.shape
    device = logits_NV.device
    drawn_N = torch.empty(n_rows, dtype=torch.int64, device=device)
    if not n_rows:
        return drawn_N
    logits_NV = logits_NV.contiguous()
    n_pieces = triton.cdiv(vocab_size, PIECE)
    top_NB = torch.empty((n_rows, n_pieces), dtype=torch.float32, device=device)
    top_id_NB = torch.empty((n_rows, n_pieces), dtype=torch.int32, device=device)
    mass_NB = torch.empty((n_rows, n_pieces), dtype=torch.int64, device=device)
    chain = chain_options(device, n_rows)
    sizes = {"PIECE": PIECE, "BLOCK_B": triton.next_power_of_2(n_pieces), **chain}
    top_of_pieces[(n_rows, n_pieces)](
        logits_NV, top_NB, top_id_NB, vocab_size, n_pieces, PIECE=PIECE, **chain, num_warps=8
    )
    edge_N = edge_id_N = None
    if top_k_N is not None or top_p_N is not None:
        edge_N, edge_id_N = find(logits_NV, top_NB, temperature_N, top_k_N, top_p_N, sizes)
    shared = (logits_NV, top_NB, temperature_N, min_p_N, edge_N, edge_id_N)
    sum_pieces[(n_rows, n_pieces)](*shared, mass_NB, vocab_size, n_pieces, **sizes, num_warps=8)
    choose[(n_rows,)](*shared, top_id_NB, mass_NB, seed_N, index_N, drawn_N, vocab_size, n_pieces, **sizes, num_warps=8)
    return drawn_N
