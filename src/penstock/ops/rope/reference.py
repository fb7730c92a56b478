"""Shape letters: T tokens, H heads, D head dim, R rotated pairs (2R <= D)."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate feature pairs (r, r + R) of every head by the angle of its token; features from 2R on stay.

    Args:
        x_THD: queries, keys, or both side by side, any float dtype.
        cos_TR, sin_TR: float32, of the angles (`penstock.models.rope.Rotation`).
    Returns: like x_THD, contiguous. The arithmetic is float32.
    Raises: ValueError if the tables are wider than half a head.
    Source: RoFormer (arXiv 2104.09864), with halves paired as in GPT-NeoX and transformers.
    """
    pairs = cos_TR.shape[-1]
    if 2 * pairs > x_THD.shape[-1]:
        raise ValueError(f"rope: tables of {pairs} pairs rotate {2 * pairs} features, a head has {x_THD.shape[-1]}")
    cos_T1R, sin_T1R = cos_TR.unsqueeze(1), sin_TR.unsqueeze(1)
    a = x_THD[..., :pairs].float()
    b = x_THD[..., pairs : 2 * pairs].float()
    rotated = torch.cat((a * cos_T1R - b * sin_T1R, b * cos_T1R + a * sin_T1R), dim=-1).to(x_THD.dtype)
    if 2 * pairs == x_THD.shape[-1]:
        return rotated
    return torch.cat((rotated, x_THD[..., 2 * pairs :]), dim=-1)
