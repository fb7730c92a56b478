"""Shape letters: F inner width."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 7.0
ALPHA = 1.702


def clamped_swiglu(gate_up: Tensor) -> Tensor:
    """(up + 1) * gate * sigmoid(ALPHA * gate), with gate at most LIMIT and up within LIMIT of 0.

    Args:
        gate_up: [..., 2F]; gate and up alternate, unlike those of the other gated activations.
    Returns: [..., F], in the dtype of the input, as is the arithmetic.
    Source: GPT-OSS (arXiv 2508.10925).
    """
    gate, up = gate_up[..., ::2].clamp(max=LIMIT), gate_up[..., 1::2].clamp(min=-LIMIT, max=LIMIT)
    return (up + 1) * (gate * torch.sigmoid(gate * ALPHA))
