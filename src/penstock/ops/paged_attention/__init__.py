"""Attention over keys and values in a paged pool."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.paged_attention import cpu, native, reference

paged_attention = Op(
    "paged_attention",
    reference.paged_attention,
    cpu=cpu.paged_attention,
    native=native.paged_attention,
    cuda=triton_kernel(reference.paged_attention),
)
