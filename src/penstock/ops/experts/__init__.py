"""The MLP of a mixture of experts."""

from penstock.ops.experts import cpu, reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

experts = Op("experts", reference.experts, cpu=cpu.experts, cuda=triton_kernel(reference.experts))
