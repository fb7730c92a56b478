"""One pass."""

from __future__ import annotations

from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.gated_kernel import gated


def clamped_swiglu(gate_up: Tensor) -> Tensor:
    """See `reference.clamped_swiglu`."""
    return gated(gate_up, Activation.CLAMPED_SWIGLU)
