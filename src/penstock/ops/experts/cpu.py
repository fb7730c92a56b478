"""Experts on the CPU: sort the visits by expert once, then every expert that is hit takes one contiguous piece.

Shape letters: T tokens, K experts per token, E experts, D features, F inner width, V = T * K visits.
"""

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
    """See `reference.experts`."""
    visits_V = experts_TK.flatten()
    order_V = visits_V.argsort(stable=True)
    tokens_V = order_V // experts_TK.shape[1]
    x_VD = x_TD.index_select(0, tokens_V)
    out_VD = torch.empty_like(x_VD)
    start, gate = 0, GATED[activation]
    for expert, n_visits in enumerate(torch.bincount(visits_V).tolist()):
        if n_visits == 0:
            continue
        piece = slice(start, start + n_visits)
        gate_up_bias = None if gate_up_bias_EF is None else gate_up_bias_EF[expert]
        down_bias = None if down_bias_ED is None else down_bias_ED[expert]
        gated = gate(F.linear(x_VD[piece], gate_up_EFD[expert], gate_up_bias))
        out_VD[piece] = F.linear(gated, down_EDF[expert], down_bias)
        start += n_visits
    out_VD *= weights_TK.flatten().index_select(0, order_V).unsqueeze(1)
    out_TD = torch.zeros_like(x_TD, dtype=torch.float32)
    return out_TD.index_add_(0, tokens_V, out_VD.float()).to(x_TD.dtype)
