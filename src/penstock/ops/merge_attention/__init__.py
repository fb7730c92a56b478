"""Joining attention over disjoint sets of keys."""

from penstock.ops.merge_attention import reference
from penstock.ops.op import Op

merge_attention = Op("merge_attention", reference.merge_attention)
