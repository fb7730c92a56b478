"""A linear layer with a weight that was packed once."""

from penstock.ops.op import Op
from penstock.ops.packed_linear import native, reference

packed_linear = Op("packed_linear", reference.packed_linear, native=native.packed_linear)
