"""The activation of Gemma's MLP."""

from penstock.ops.gated_gelu import reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

gated_gelu = Op("gated_gelu", reference.gated_gelu, cuda=triton_kernel(reference.gated_gelu))
