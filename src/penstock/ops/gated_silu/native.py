"""One pass."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.gated_silu import reference
from penstock.ops.native import core, is_served


def gated_silu(gate_up: Tensor) -> Tensor:
    """See `reference.gated_silu`."""
    library = core("gated_silu")
    if library is None or not is_served(gate_up) or not gate_up.is_contiguous():
        return reference.gated_silu(gate_up)
    width = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype)
    is_bf16 = gate_up.dtype is torch.bfloat16
    rows = gate_up.numel() // (2 * width) if width else 0
    library.gated_silu(is_bf16, gate_up.data_ptr(), rows, width, out.data_ptr(), torch.get_num_threads())
    return out
