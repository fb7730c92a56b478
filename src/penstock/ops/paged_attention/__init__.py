"""Attention over keys and values in a paged pool."""

from penstock.ops.op import Op
from penstock.ops.paged_attention import reference

paged_attention = Op("paged_attention", reference.paged_attention)
