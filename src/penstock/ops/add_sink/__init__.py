"""A learned share of attention that goes to no key."""

from penstock.ops.add_sink import reference
from penstock.ops.op import Op

add_sink = Op("add_sink", reference.add_sink)
