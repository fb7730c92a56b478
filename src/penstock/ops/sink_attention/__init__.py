"""Attention over the first tokens of a sequence, beside that over its window."""

from penstock.ops.op import Op
from penstock.ops.sink_attention import reference

sink_attention = Op("sink_attention", reference.sink_attention)
