"""From what is known by row to where a step's tokens stand, are written and read."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.place_segments import reference
from penstock.ops.place_segments.reference import Placed

place_segments = Op("place_segments", reference.place_segments, cuda=triton_kernel(reference.place_segments))

__all__ = ["Placed", "place_segments"]
