"""Rotary position embedding."""

from penstock.ops.op import Op
from penstock.ops.rope import reference

rope = Op("rope", reference.rope)
