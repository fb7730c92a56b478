"""From a fused projection to what attention reads: queries, and keys and values in the pool."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.rope_and_store import cpu, reference

rope_and_store = Op(
    "rope_and_store", reference.rope_and_store, cpu=cpu.rope_and_store, cuda=triton_kernel(reference.rope_and_store)
)
