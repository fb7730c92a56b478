"""Shape letters: T tokens, E experts, K experts per token."""

from __future__ import annotations

import torch
from torch import Tensor


def route(logits_TE: Tensor, top_k: int, is_normalized: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts: the largest softmax weights over all experts.

    Args:
        logits_TE: router scores, any float dtype.
        top_k: experts per token.
        is_normalized: the chosen weights are scaled to sum to 1.
    Returns: (weights_TK in the dtype of the logits, experts_TK int64), largest weight first. The softmax is float32.
    Source: Switch Transformers (arXiv 2101.03961), as in Qwen3-MoE.
    """
    weights_TK, experts_TK = torch.softmax(logits_TE, dim=-1, dtype=torch.float32).topk(top_k, dim=-1)
    if is_normalized:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK.to(logits_TE.dtype), experts_TK
