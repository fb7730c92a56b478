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
    gate_up_bias_EF: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """Weighted sum of gated MLPs, each token through its own few.

    Args:
        x_TD: any float dtype.
        gate_up_EFD: [E, 2F, D], rows as the activation wants them. down_EDF: [E, D, F].
        weights_TK, experts_TK: from `route`.
        activation: between the two matrices of an expert.
        gate_up_bias_EF: [E, 2F]. down_bias_ED: [E, D].
    Returns: like x_TD; the sum over a token's experts is float32.
    Source: as in Qwen3-MoE of transformers.
    """
    out_TD = torch.zeros_like(x_TD, dtype=torch.float32)
    for expert in torch.unique(experts_TK).tolist():
        tokens, places = torch.where(experts_TK == expert)
        gate_up_bias = None if gate_up_bias_EF is None else gate_up_bias_EF[expert]
        down_bias = None if down_bias_ED is None else down_bias_ED[expert]
        gated = GATED[activation](F.linear(x_TD[tokens], gate_up_EFD[expert], gate_up_bias))
        result = F.linear(gated, down_EDF[expert], down_bias) * weights_TK[tokens, places, None]
        out_TD.index_add_(0, tokens, result.float())
    return out_TD.to(x_TD.dtype)
