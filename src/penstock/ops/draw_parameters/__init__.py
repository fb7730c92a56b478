"""From what is known by row to what `sample` takes."""

from penstock.ops.draw_parameters import reference
from penstock.ops.lazy import triton_kernel
from penstock.ops.op import Op

draw_parameters = Op("draw_parameters", reference.draw_parameters, cuda=triton_kernel(reference.draw_parameters))
