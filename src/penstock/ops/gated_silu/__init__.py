"""The activation of a gated MLP."""

from penstock.ops.gated_silu import native, reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

gated_silu = Op("gated_silu", reference.gated_silu, native=native.gated_silu, cuda=triton_kernel(reference.gated_silu))
