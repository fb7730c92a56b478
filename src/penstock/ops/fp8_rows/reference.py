"""Shape letters: T tokens, D features."""

from __future__ import annotations

from torch import Tensor

from penstock.ops.rms_norm import rms_norm
from penstock.ops.rounding import fp8_of_rows


def fp8_rows(
    x_TD: Tensor,
    norm_D: Tensor | None = None,
    eps: float = 0.0,
    residual_TD: Tensor | None = None,
    is_centered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round each token's features to e4m3, by a scale that makes the largest of them 448; first norm them, if asked.

    Args:
        x_TD: any float dtype.
        norm_D, eps, residual_TD, is_centered: see `rms_norm`; norm_D None: no norm, but the residual is added.
    Returns: (rounded_TD in float8_e4m3fn, scales_T in float32, total_TD: x + residual). The norm's result is rounded to
        the dtype of x on the way, as a linear layer would get it.
    Source: dynamic scales per token; e4m3 as in FP8 Formats for Deep Learning (arXiv 2209.05433).
    """
    if norm_D is not None:
        normed_TD, total_TD = rms_norm.implementations["reference"](x_TD, norm_D, eps, residual_TD, is_centered)
    else:
        normed_TD = total_TD = x_TD if residual_TD is None else x_TD + residual_TD
    rounded_TD, scales_T = fp8_of_rows(normed_TD)
    return rounded_TD, scales_T, total_TD
