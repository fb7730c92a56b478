"""Attention of one-token segments against a maximum that was fixed beforehand."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.unified_attention import native, reference

unified_attention = Op(
    "unified_attention",
    reference.unified_attention,
    native=native.unified_attention,
    cuda=triton_kernel(reference.unified_attention),
)
