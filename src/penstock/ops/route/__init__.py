"""Which experts a token visits."""

from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op
from penstock.ops.route import reference

route = Op("route", reference.route, cuda=triton_kernel(reference.route))
