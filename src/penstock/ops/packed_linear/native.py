"""One loop for every number of tokens; see `cpp/linear.h`."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penstock.ops.native import core, is_served
from penstock.ops.packed_linear import reference

if TYPE_CHECKING:
    from penstock.ops.packed import PackedWeight


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """See `reference.packed_linear`."""
    library = core("packed_linear")
    if library is None or not is_served(x) or x.dim() != 2 or x.dtype is not weight.compute_dtype:
        return reference.packed_linear(x, weight, bias)
    n_inputs, n_outputs = weight.inputs, weight.outputs
    if x.shape[1] != n_inputs:
        raise ValueError(f"packed_linear: {x.shape[1]} features meet a weight of {n_outputs}x{n_inputs}")
    if weight.described.k > n_inputs:
        x = torch.nn.functional.pad(x, (0, weight.described.k - n_inputs))
    out = torch.empty((x.shape[0], n_outputs), dtype=x.dtype)
    library.linear(
        x.dtype is torch.bfloat16,
        x.data_ptr(),
        x.shape[0],
        x.stride(0),
        ctypes.addressof(weight.described),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out if bias is None else out.add_(bias)
