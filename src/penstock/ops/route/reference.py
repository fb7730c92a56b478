"""Shape letters: T tokens, E experts, K experts per token, G groups of M experts, P chosen groups."""

from __future__ import annotations

import torch
from torch import Tensor


def route(
    logits_TE: Tensor, top_k: int, is_normalized: bool, scale: float = 1.0, n_groups: int = 1, top_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Choose each token's experts: the largest softmax weights over all experts, or over those of the best groups.

    Args:
        logits_TE: router scores, any float dtype.
        top_k: experts per token.
        is_normalized: the chosen weights are scaled to sum to 1.
        scale: what the weights are multiplied by in the end.
        n_groups, top_groups: the experts are that many equal runs, of which so many with the largest weights stay.
    Returns: (weights_TK in the dtype of the logits, experts_TK int64), largest weight first. The softmax is float32.
    Source: Switch Transformers (arXiv 2101.03961), as in Qwen3-MoE; groups as in DeepSeek-V2 (arXiv 2405.04434).
    """
    weights_TE = torch.softmax(logits_TE, dim=-1, dtype=torch.float32)
    if top_groups < n_groups:
        weights_TE = _of_best_groups(weights_TE, n_groups, top_groups)
    weights_TK, experts_TK = weights_TE.topk(top_k, dim=-1)
    if is_normalized:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return (weights_TK * scale).to(logits_TE.dtype), experts_TK


def _of_best_groups(weights_TE: Tensor, n_groups: int, top_groups: int) -> Tensor:
    """Weights outside of the best groups are 0."""
    weights_TGM = weights_TE.view(len(weights_TE), n_groups, weights_TE.shape[1] // n_groups)
    best_TP = weights_TGM.amax(-1).topk(top_groups, dim=-1).indices
    is_best_TG = torch.zeros_like(weights_TGM[..., 0], dtype=torch.bool).scatter_(1, best_TP, True)
    return (weights_TGM * is_best_TG.unsqueeze(-1)).flatten(1)
