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
from penstock.ops.fp8_rows import fp8_rows
from penstock.ops.gated_kernel import KINDS
from penstock.ops.quantized import QuantizedStack
from penstock.ops.quantized_kernel import SCHEMES
from penstock.ops.weight_format import Format

SORT_BLOCK = 128
PLAIN = -1  # weights are numbers of the dtype of the tokens


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
    if x_TD.stride(1) != 1 or not (_is_ours(gate_up_EFD) and _is_ours(down_EDF)):
        return reference.experts(
            x_TD, gate_up_EFD, down_EDF, weights_TK, experts_TK, activation, gate_up_bias_EF, down_bias_ED
        )
    n_tokens, features = x_TD.shape
    n_experts, top_k, width = gate_up_EFD.shape[0], experts_TK.shape[1], down_EDF.shape[2]
    out_TD = torch.empty((n_tokens, features), dtype=x_TD.dtype, device=x_TD.device)
    if not n_tokens:
        return out_TD
    n_visits = n_tokens * top_k
    chain = chain_options(x_TD.device, n_tokens)
    counts_E, sorted_V = _sort(experts_TK, n_experts, chain) if n_tokens > 1 else (None, None)
    tile = tile_of(n_visits, n_experts, x_TD.dtype)
    n_tiles = n_visits if n_tokens == 1 else min(n_visits, n_experts + n_visits // tile["BLOCK_M"])
    inner_VF = torch.empty((n_visits, width), dtype=x_TD.dtype, device=x_TD.device)
    visit_VD = torch.empty((n_visits, features), dtype=x_TD.dtype, device=x_TD.device)
    where = (experts_TK, counts_E, sorted_V)
    sizes = {"TOP_K": top_k, "N_EXPERTS": n_experts, "BLOCK_E": triton.next_power_of_2(n_experts), **tile, **chain}
    x_TD, x_scales_T = _rounded(x_TD, gate_up_EFD)
    enter_experts[(triton.cdiv(width, tile["BLOCK_N"]), n_tiles)](
        x_TD, x_scales_T, *_stored(gate_up_EFD), gate_up_bias_EF, inner_VF, *where, width, x_TD.stride(0), n_visits,
        FEATURES=features, GATE=KINDS[activation], SCHEME=_scheme(gate_up_EFD), **sizes,
    )  # fmt: skip
    inner_VF, inner_scales_V = _rounded(inner_VF, down_EDF)
    leave_experts[(triton.cdiv(features, tile["BLOCK_N"]), n_tiles)](
        inner_VF, inner_scales_V, *_stored(down_EDF), down_bias_ED, weights_TK, visit_VD, *where, features, n_visits,
        WIDTH=width, SCHEME=_scheme(down_EDF), **sizes,
    )  # fmt: skip
    block_d = min(1024, triton.next_power_of_2(features))
    add_visits[(n_tokens, triton.cdiv(features, block_d))](
        visit_VD, out_TD, features, TOP_K=top_k, BLOCK_D=block_d, **chain
    )
    return out_TD


def _is_ours(weight_ENK: Tensor) -> bool:
    return isinstance(weight_ENK, QuantizedStack) or weight_ENK.is_contiguous()


def _stored(weight_ENK: Tensor) -> tuple[Tensor, Tensor | None]:
    """(numbers, scales)."""
    return (weight_ENK.numbers, weight_ENK.scales) if isinstance(weight_ENK, QuantizedStack) else (weight_ENK, None)


def _scheme(weight_ENK: Tensor) -> int:
    return SCHEMES[weight_ENK.format] if isinstance(weight_ENK, QuantizedStack) else PLAIN


def _rounded(x_TK: Tensor, weight_ENK: Tensor) -> tuple[Tensor, Tensor | None]:
    """What meets the weight: as it is, or rounded to fp8 with a scale per token, which meets fp8."""
    if not (isinstance(weight_ENK, QuantizedStack) and weight_ENK.format is Format.FP8):
        return x_TK, None
    return fp8_rows(x_TK)[:2]


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


def tile_of(n_visits: int, n_experts: int, dtype: torch.dtype) -> dict[str, Any]:
    """Visits, outputs and inputs of a program's tile, by how many visits an expert gets."""
    each = n_visits / n_experts
    if each <= 16 or dtype.itemsize > 2:
        return {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3}
    if each <= 48:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
