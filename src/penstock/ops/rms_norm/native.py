"""One pass over each row, the residual added on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.native import core, is_served
from penstock.ops.rms_norm import reference


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, is_centered: bool = False
) -> tuple[Tensor, Tensor]:
    """See `reference.rms_norm`."""
    library = core("rms_norm")
    weight_stride = _weight_stride(x, weight)
    tensors = (x, weight) if residual is None else (x, weight, residual)
    if library is None or is_centered or weight_stride is None or not is_served(*tensors):
        return reference.rms_norm(x, weight, eps, residual, is_centered)
    if residual is not None and not residual.is_contiguous():
        residual = residual.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    total = x if residual is None else torch.empty(x.shape, dtype=x.dtype)
    library.rms_norm(
        x.dtype is torch.bfloat16,
        x.data_ptr(),
        x.shape[0],
        x.shape[1] if x.dim() == 3 else 1,
        x.shape[-1],
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        weight.data_ptr(),
        weight_stride,
        eps,
        None if residual is None else residual.data_ptr(),
        None if residual is None else total.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out, total


def _weight_stride(x: Tensor, weight: Tensor) -> int | None:
    """From the weights of one head to those of the next; None for a shape that C++ does not serve."""
    if weight.shape == x.shape[-1:] and x.dim() in (2, 3):
        return 0
    return weight.stride(0) if x.dim() == 3 and weight.shape == x.shape[1:] else None
