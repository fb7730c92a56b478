"""Experts on a GPU: visits are sorted by expert, and a tile of one expert's visits is one matrix product.

All on the device: how many tiles there are is bounded by the shape, which expert has which follows from the counts, and
programs without a tile end at once. So a captured call serves every routing. One token needs no sorting: each of its
visits is a tile.

Shape letters: T tokens, K experts per token, E experts, D features, F inner width, V = T * K visits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.chain import chain_options
from penstock.ops.experts import reference
from penstock.ops.experts.triton_kernels import add_visits, count_visits, enter_experts, leave_experts, sort_visits
from penstock.ops.gated_kernel import KINDS

SORT_BLOCK = 128


def experts(
    x_TD: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    activation: Activation = Activation.SILU,
    gate_up_bias_EF: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """See `reference.experts`."""
    if x_TD.stride(1) != 1 or not (gate_up_EFD.is_contiguous() and down_EDF.is_contiguous()):
        return reference.experts(
            x_TD, gate_up_EFD, down_EDF, weights_TK, experts_TK, activation, gate_up_bias_EF, down_bias_ED
        )
    n_tokens, features = x_TD.shape
    n_experts, top_k, width = len(gate_up_EFD), experts_TK.shape[1], down_EDF.shape[2]
    out_TD = torch.empty((n_tokens, features), dtype=x_TD.dtype, device=x_TD.device)
    if not n_tokens:
        return out_TD
    n_visits = n_tokens * top_k
    chain = chain_options(x_TD.device, n_tokens)
    counts_E, sorted_V = _sort(experts_TK, n_experts, chain) if n_tokens > 1 else (None, None)
    tile = _tile(n_visits, n_experts, x_TD.dtype)
    n_tiles = n_visits if n_tokens == 1 else min(n_visits, n_experts + n_visits // tile["BLOCK_M"])
    inner_VF = torch.empty((n_visits, width), dtype=x_TD.dtype, device=x_TD.device)
    visit_VD = torch.empty((n_visits, features), dtype=x_TD.dtype, device=x_TD.device)
    where = (experts_TK, counts_E, sorted_V)
    sizes = {"TOP_K": top_k, "N_EXPERTS": n_experts, "BLOCK_E": triton.next_power_of_2(n_experts), **tile, **chain}
    enter_experts[(triton.cdiv(width, tile["BLOCK_N"]), n_tiles)](
        x_TD, gate_up_EFD, gate_up_bias_EF, inner_VF, *where, width, x_TD.stride(0), n_visits,
        FEATURES=features, GATE=KINDS[activation], **sizes,
    )  # fmt: skip
    leave_experts[(triton.cdiv(features, tile["BLOCK_N"]), n_tiles)](
        inner_VF, down_EDF, down_bias_ED, weights_TK, visit_VD, *where, features, n_visits, WIDTH=width, **sizes
    )
    block_d = min(1024, triton.next_power_of_2(features))
    add_visits[(n_tokens, triton.cdiv(features, block_d))](
        visit_VD, out_TD, features, TOP_K=top_k, BLOCK_D=block_d, **chain
    )
    return out_TD


def _sort(experts_TK: Tensor, n_experts: int, chain: dict[str, bool]) -> tuple[Tensor, Tensor]:
    """(visits of each expert, all visits in the order of their experts)."""
    n_visits = experts_TK.numel()
    counts_E = torch.zeros(n_experts, dtype=torch.int32, device=experts_TK.device)
    ranks_V = torch.empty(n_visits, dtype=torch.int32, device=experts_TK.device)
    sorted_V = torch.empty(n_visits, dtype=torch.int32, device=experts_TK.device)
    grid = (triton.cdiv(n_visits, SORT_BLOCK),)
    count_visits[grid](experts_TK, counts_E, ranks_V, n_visits, BLOCK_V=SORT_BLOCK, **chain)
    sort_visits[grid](
        experts_TK,
        counts_E,
        ranks_V,
        sorted_V,
        n_visits,
        N_EXPERTS=n_experts,
        BLOCK_E=triton.next_power_of_2(n_experts),
        BLOCK_V=SORT_BLOCK,
        **chain,
    )
    return counts_E, sorted_V


def _tile(n_visits: int, n_experts: int, dtype: torch.dtype) -> dict[str, Any]:
    """Visits, outputs and inputs of a program's tile, by how many visits an expert gets."""
    each = n_visits / n_experts
    if each <= 16 or dtype.itemsize > 2:
        return {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3}
    if each <= 48:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
