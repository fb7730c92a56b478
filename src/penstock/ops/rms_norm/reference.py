"""Shape letters: any leading dimensions ..., D features."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, is_centered: bool = False
) -> tuple[Tensor, Tensor]:
    """Divide by the root mean square over the last dimension, then scale; first add `residual`, if there is one.

    Args:
        x: [..., D], any float dtype.
        weight: [D], or any shape that broadcasts against x: one row per head serves a norm on queries and keys.
        eps: added to the mean square.
        residual: like x; added in the dtype of x.
        is_centered: the scale is 1 + weight.
    Returns: (normed, total), both like x. `total` is x + residual, or x itself: the residual stream that goes on.
        The mean and the root are float32, the scaling is in the dtype of x; a centered scaling is float32, too.
    Source: RMSNorm (arXiv 1910.07467); the order of casts is that of the Llama models in transformers, of Gemma if
        centered.
    """
    total = x if residual is None else x + residual
    wide = total.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if is_centered:
        return (normed * (1.0 + weight.float())).to(total.dtype), total
    return weight * normed.to(total.dtype), total
