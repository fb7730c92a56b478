"""A linear layer with what stands before and behind it."""

from penstock.ops.entry_linear import cpu, reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

entry_linear = Op(
    "entry_linear", reference.entry_linear, cpu=cpu.entry_linear, cuda=triton_kernel(reference.entry_linear)
)
