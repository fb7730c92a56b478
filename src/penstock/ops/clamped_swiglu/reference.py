"""Shape letters: F inner width."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.activation import SWIGLU_ALPHA, SWIGLU_LIMIT


def clamped_swiglu(gate_up: Tensor) -> Tensor:
    """(up + 1) * gate * sigmoid(SWIGLU_ALPHA * gate), with gate at most SWIGLU_LIMIT and up within it of 0.

    Args:
        gate_up: [..., 2F]; gate and up alternate, unlike those of the other gated activations.
    Returns: [..., F], in the dtype of the input, as is the arithmetic.
    Source: GPT-OSS (arXiv 2508.10925).
    """
    gate, up = gate_up[..., ::2].clamp(max=SWIGLU_LIMIT), gate_up[..., 1::2].clamp(min=-SWIGLU_LIMIT, max=SWIGLU_LIMIT)
    return (up + 1) * (gate * torch.sigmoid(gate * SWIGLU_ALPHA))
