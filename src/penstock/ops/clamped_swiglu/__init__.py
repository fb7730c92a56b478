"""The activation of the experts of GPT-OSS."""

from penstock.ops.clamped_swiglu import reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

clamped_swiglu = Op("clamped_swiglu", reference.clamped_swiglu, cuda=triton_kernel(reference.clamped_swiglu))
