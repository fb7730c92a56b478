"""Making tokens that occurred less likely, or more."""

from penstock.ops.op import Op
from penstock.ops.penalize import reference

penalize = Op("penalize", reference.penalize)
