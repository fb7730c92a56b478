"""Remembering by row what a step drew."""

from penstock.ops.advance_rows import reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

advance_rows = Op("advance_rows", reference.advance_rows, cuda=triton_kernel(reference.advance_rows))
