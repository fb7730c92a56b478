"""One pass."""

from __future__ import annotations

from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.gated_kernel import gated


def gated_gelu(gate_up: Tensor) -> Tensor:
    """See `reference.gated_gelu`."""
    return gated(gate_up, Activation.GELU_TANH)
