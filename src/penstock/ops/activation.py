"""The activations of gated MLPs, by name; `gated.py` has the op of each. No torch here: configurations name them."""

from __future__ import annotations

from enum import Enum

SWIGLU_LIMIT = 7.0  # of the clamped one
SWIGLU_ALPHA = 1.702


class Activation(Enum):
    """By the name that configurations use."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"
    CLAMPED_SWIGLU = "clamped_swiglu"  # no configuration names it: GPT-OSS says silu
