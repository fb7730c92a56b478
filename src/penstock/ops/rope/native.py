"""One pass over each head."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.native import core, is_served
from penstock.ops.rope import cpu


def rope(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """See `reference.rope`."""
    library = core("rope")
    pairs, tables_fit = cos_TR.shape[-1], cos_TR.is_contiguous() and sin_TR.is_contiguous()
    if library is None or not is_served(x_THD) or not tables_fit or 2 * pairs > x_THD.shape[-1]:
        return cpu.rope(x_THD, cos_TR, sin_TR)
    out_THD = torch.empty(x_THD.shape, dtype=x_THD.dtype)
    library.rope(
        x_THD.dtype is torch.bfloat16,
        x_THD.data_ptr(),
        *x_THD.shape,
        x_THD.stride(0),
        x_THD.stride(1),
        cos_TR.data_ptr(),
        sin_TR.data_ptr(),
        pairs,
        out_THD.data_ptr(),
        torch.get_num_threads(),
    )
    return out_THD
