"""Attention of a batch in which several rows read the same keys."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.shared_attention import cpu, native, reference

shared_attention = Op(
    "shared_attention",
    reference.shared_attention,
    cpu=cpu.shared_attention,
    native=native.shared_attention,
    cuda=triton_kernel(reference.shared_attention),
)
