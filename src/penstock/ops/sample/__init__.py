"""Choosing the next token, and saying how likely it was."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.sample import cpu, reference
from penstock.ops.sample.reference import Logprobs

# `narrow` has not been measured on a GPU: `benchmarks/gpu/sample.py` compares it with `cuda`, whose place it may take
sample = Op(
    "sample",
    reference.sample,
    cpu=cpu.sample,
    cuda=triton_kernel(reference.sample),
    narrow=triton_kernel(reference.sample, "narrow"),
)
logprobs = reference.logprobs

__all__ = ["Logprobs", "logprobs", "sample"]
