"""Choosing the next token, and saying how likely it was."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.sample import cpu, reference
from penstock.ops.sample.reference import Logprobs

sample = Op(
    "sample",
    reference.sample,
    cpu=cpu.sample,
    cuda=triton_kernel(reference.sample, "narrow"),
    halving=triton_kernel(reference.sample),  # any number of rows the way of many: to compare with
)
logprobs = reference.logprobs

__all__ = ["Logprobs", "logprobs", "sample"]
