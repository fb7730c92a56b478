"""A linear layer whose weight has few bits, with what stands before and behind it."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.quantized_linear import reference

quantized_linear = Op("quantized_linear", reference.quantized_linear, cuda=triton_kernel(reference.quantized_linear))
