"""RMS norm, with an optional residual that is added first."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.rms_norm import native, reference

rms_norm = Op("rms_norm", reference.rms_norm, native=native.rms_norm, cuda=triton_kernel(reference.rms_norm))
