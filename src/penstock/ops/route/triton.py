"""One program per token: softmax, then the largest weight again and again.

Shape letters: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs
from penstock.ops.route import reference


def route(
    logits_TE: Tensor, top_k: int, is_normalized: bool, scale: float = 1.0, n_groups: int = 1, top_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """See `reference.route`. Among equal weights the lower expert comes first."""
    if top_groups < n_groups or logits_TE.stride(1) != 1:
        return reference.route(logits_TE, top_k, is_normalized, scale, n_groups, top_groups)
    n_tokens, n_experts = logits_TE.shape
    weights_TK = torch.empty((n_tokens, top_k), dtype=logits_TE.dtype, device=logits_TE.device)
    experts_TK = torch.empty((n_tokens, top_k), dtype=torch.int64, device=logits_TE.device)
    if n_tokens:
        _route[(n_tokens,)](
            logits_TE,
            weights_TK,
            experts_TK,
            logits_TE.stride(0),
            float(scale),
            n_experts,
            TOP_K=top_k,
            is_normalized=is_normalized,
            BLOCK_E=triton.next_power_of_2(n_experts),
            BLOCK_K=triton.next_power_of_2(top_k),
            **chain_options(logits_TE.device, n_tokens),
            num_warps=1,
        )
    return weights_TK, experts_TK


@triton.jit
def _route(
    logits,
    weights,
    experts,
    token_stride,
    scale,
    n_experts,
    TOP_K: tl.constexpr,
    is_normalized: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    token = tl.program_id(0).to(tl.int64)
    at_E = tl.arange(0, BLOCK_E)
    at_K = tl.arange(0, BLOCK_K)
    logit_E = tl.load(logits + token * token_stride + at_E, mask=at_E < n_experts, other=float("-inf")).to(tl.float32)
    odds_E = tl.exp(logit_E - tl.max(logit_E, axis=0))
    weight_E = tl.where(at_E < n_experts, odds_E / tl.sum(odds_E, axis=0), -1.0)
    weight_K = tl.zeros([BLOCK_K], tl.float32)
    expert_K = tl.zeros([BLOCK_K], tl.int64)
    for k in tl.static_range(TOP_K):
        best = tl.max(weight_E, axis=0)
        expert = tl.min(tl.where(weight_E == best, at_E, n_experts - 1), axis=0)  # one that exists, also for NaN
        weight_K = tl.where(at_K == k, best, weight_K)
        expert_K = tl.where(at_K == k, expert.to(tl.int64), expert_K)
        weight_E = tl.where(at_E == expert, -1.0, weight_E)
    if is_normalized:
        weight_K = weight_K / tl.sum(weight_K, axis=0)
    weight_K = (weight_K * scale).to(weights.dtype.element_ty)
    tl.store(weights + token * TOP_K + at_K, weight_K, mask=at_K < TOP_K)
    tl.store(experts + token * TOP_K + at_K, expert_K, mask=at_K < TOP_K)
