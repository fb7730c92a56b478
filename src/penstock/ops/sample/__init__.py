"""Choosing the next token, and saying how likely it was."""

from penstock.ops.op import Op
from penstock.ops.sample import cpu, reference
from penstock.ops.sample.reference import Logprobs

sample = Op("sample", reference.sample, cpu=cpu.sample)
logprobs = reference.logprobs

__all__ = ["Logprobs", "logprobs", "sample"]
