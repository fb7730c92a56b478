"""Shape letters: T tokens, D inputs, N outputs, F inner width (N = 2F)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.gated import GATED
from penstock.ops.rms_norm import rms_norm
from penstock.ops.rounding import fp8_of_rows
from penstock.ops.weight_format import Format

if TYPE_CHECKING:
    from penstock.ops.quantized import QuantizedWeight


def quantized_linear(
    x_TD: Tensor,
    weight_ND: QuantizedWeight,
    bias_N: Tensor | None = None,
    residual_TD: Tensor | None = None,
    norm_D: Tensor | None = None,
    eps: float = 0.0,
    is_centered: bool = False,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]:
    """`entry_linear` with a weight that `penstock.ops.quantized.quantize` made.

    Args:
        x_TD: any float dtype.
        weight_ND: int8 and int4: x meets the weight restored to the dtype of x. fp8: x is rounded to e4m3, too, with a
            scale per token, whatever the batch; the product of the rounded numbers is exact, their sum is float32.
        bias_N, residual_TD, norm_D, eps, is_centered, activation: see `entry_linear`.
    Returns: (out_TN, or out_TF behind an activation; total_TD: x + residual, the residual stream that goes on).
    Source: W8A8 with scales per channel and token as in FP8 Formats for Deep Learning (arXiv 2209.05433); groups of 32
        as in GGML.
    """
    total_TD = x_TD if residual_TD is None else x_TD + residual_TD
    normed_TD = total_TD
    if norm_D is not None:
        normed_TD, _ = rms_norm.implementations["reference"](total_TD, norm_D, eps, None, is_centered)
    out_TN = product(normed_TD, weight_ND, bias_N)
    if activation is None:
        return out_TN, total_TD
    return GATED[activation].implementations["reference"](out_TN), total_TD


def product(x_TD: Tensor, weight_ND: QuantizedWeight, bias_N: Tensor | None) -> Tensor:
    """x @ weight.T + bias in the dtype of x."""
    if weight_ND.format is not Format.FP8:
        return F.linear(x_TD, weight_ND.dense(x_TD.dtype), bias_N)
    return exact_product(*fp8_of_rows(x_TD), weight_ND, bias_N).to(x_TD.dtype)


def exact_product(x_TD: Tensor, scales_T: Tensor, weight_ND: QuantizedWeight, bias_N: Tensor | None) -> Tensor:
    """float32 [T, N] of e4m3 numbers, whose products are exact."""
    sum_TN = F.linear(x_TD.float(), weight_ND.numbers.float()) * scales_T.unsqueeze(1) * weight_ND.scales
    return sum_TN if bias_N is None else sum_TN + bias_N.float()
