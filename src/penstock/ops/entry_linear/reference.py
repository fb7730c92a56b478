"""Shape letters: T tokens, D inputs, N outputs, F inner width (N = 2F)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.gated import GATED
from penstock.ops.rms_norm import reference as rms_norm


def entry_linear(
    x_TD: Tensor,
    weight_ND: Tensor,
    bias_N: Tensor | None = None,
    residual_TD: Tensor | None = None,
    norm_D: Tensor | None = None,
    eps: float = 0.0,
    is_centered: bool = False,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]:
    """A linear layer, with the norm before it and the activation behind it.

    Args:
        x_TD: any float dtype.
        weight_ND, bias_N: as of a linear layer.
        residual_TD: added to x first, see `rms_norm`.
        norm_D, eps, is_centered: see `rms_norm`; None: no norm.
        activation: of a gated MLP, whose gate and up are the outputs; None: they are the result.
    Returns: (out_TN, or out_TF behind an activation; total_TD: x + residual, the residual stream that goes on).
    Source: each step as in the op it names; one kernel for few tokens, for which launches cost more than arithmetic.
    """
    total_TD = x_TD if residual_TD is None else x_TD + residual_TD
    normed_TD = total_TD if norm_D is None else rms_norm.rms_norm(total_TD, norm_D, eps, None, is_centered)[0]
    out_TN = F.linear(normed_TD, weight_ND, bias_N)
    if activation is None:
        return out_TN, total_TD
    return GATED[activation].implementations["reference"](out_TN), total_TD
