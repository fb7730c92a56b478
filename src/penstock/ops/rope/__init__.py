"""Rotary position embedding."""

from penstock.ops.op import Op
from penstock.ops.rope import cpu, reference

rope = Op("rope", reference.rope, cpu=cpu.rope)
