"""Which experts a token visits."""

from penstock.ops.op import Op
from penstock.ops.route import reference

route = Op("route", reference.route)
