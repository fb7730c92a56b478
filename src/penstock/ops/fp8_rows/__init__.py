"""Activations rounded to e4m3, with the norm before them."""

from penstock.ops.fp8_rows import reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

fp8_rows = Op("fp8_rows", reference.fp8_rows, cuda=triton_kernel(reference.fp8_rows))
