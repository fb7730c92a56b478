"""One loop for every number of tokens; see `native.cpp`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penstock.ops.native import core, is_served
from penstock.ops.packed_linear import reference
from penstock.ops.weight_format import Format

if TYPE_CHECKING:
    from penstock.ops.packed import PackedWeight


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """See `reference.packed_linear`."""
    library = core()
    if library is None or not is_served(x) or x.dim() != 2 or x.dtype is not weight.compute_dtype:
        return reference.packed_linear(x, weight, bias)
    n_inputs, n_outputs = weight.inputs, weight.outputs
    if x.shape[1] != n_inputs:
        raise ValueError(f"packed_linear: {x.shape[1]} features meet a weight of {n_outputs}x{n_inputs}")
    if n_inputs % 2 and weight.format is Format.BFLOAT16:  # it reads rows by pairs
        x = torch.nn.functional.pad(x, (0, 1))
    out = torch.empty((x.shape[0], n_outputs), dtype=x.dtype)
    scales_N = weight.scales_N
    library.linear(
        weight.format.code,
        x.dtype is torch.bfloat16,
        x.data_ptr(),
        x.shape[0],
        x.shape[1],
        x.stride(0),
        weight.data_packed.data_ptr(),
        None if scales_N is None else scales_N.data_ptr(),
        out.data_ptr(),
        n_outputs,
        torch.get_num_threads(),
    )
    return out if bias is None else out.add_(bias)
