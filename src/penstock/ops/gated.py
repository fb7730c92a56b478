"""The activation of a gated MLP, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.clamped_swiglu import clamped_swiglu
from penstock.ops.gated_gelu import gated_gelu
from penstock.ops.gated_silu import gated_silu
from penstock.ops.op import Op

GATED: Mapping[Activation, Op[[Tensor], Tensor]] = {
    Activation.SILU: gated_silu,
    Activation.GELU_TANH: gated_gelu,
    Activation.CLAMPED_SWIGLU: clamped_swiglu,
}
