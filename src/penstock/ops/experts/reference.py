"""Shape letters: T tokens, K experts per token, E experts, D features, F inner width."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.gated import GATED


def experts(
    x_TD: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    activation: Activation = Activation.SILU,
) -> Tensor:
    """Weighted sum of gated MLPs, each token through its own few.

    Args:
        x_TD: any float dtype.
        gate_up_EFD: [E, 2F, D], the gate in the first half. down_EDF: [E, D, F].
        weights_TK, experts_TK: from `route`.
        activation: between the two matrices of an expert.
    Returns: like x_TD; the sum over a token's experts is float32.
    Source: as in Qwen3-MoE of transformers.
    """
    out_TD = torch.zeros_like(x_TD, dtype=torch.float32)
    for expert in torch.unique(experts_TK).tolist():
        tokens, places = torch.where(experts_TK == expert)
        gated = GATED[activation](F.linear(x_TD[tokens], gate_up_EFD[expert]))
        result = F.linear(gated, down_EDF[expert]) * weights_TK[tokens, places, None]
        out_TD.index_add_(0, tokens, result.float())
    return out_TD.to(x_TD.dtype)
