"""The steps one by one, each in its fastest form; for many tokens a GPU does the same."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.gated import GATED
from penstock.ops.rms_norm import rms_norm


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
    """See `reference.entry_linear`."""
    if norm_D is not None:
        normed_TD, total_TD = rms_norm(x_TD, norm_D, eps, residual_TD, is_centered)
    else:
        normed_TD = total_TD = x_TD if residual_TD is None else x_TD + residual_TD
    out_TN = F.linear(normed_TD, weight_ND, bias_N)
    return out_TN if activation is None else GATED[activation](out_TN), total_TD
