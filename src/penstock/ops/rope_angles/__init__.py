"""Cosines and sines of rotary positions."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.rope_angles import reference

rope_angles = Op("rope_angles", reference.rope_angles, cuda=triton_kernel(reference.rope_angles))
