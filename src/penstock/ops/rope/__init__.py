"""Rotary position embedding."""

from penstock.ops.op import Op
from penstock.ops.rope import cpu, native, reference

rope = Op("rope", reference.rope, cpu=cpu.rope, native=native.rope)
