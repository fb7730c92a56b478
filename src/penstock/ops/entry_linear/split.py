"""Linear layers for few rows with the weights on the left of the product: rows are filled up to 8 instead of 16.

The inputs are cut into parts where the outputs alone make too few programs (`tiling.py`); what the parts sum up is
joined by a second kernel, which also adds the bias and applies the activation, always in one order.

Shape letters: M rows, N outputs, K inputs, P parts, F inner width (N = 2F behind a gate).
"""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from penstock.ops.entry_linear.tiling import BLOCK_INPUTS, Tiling, tiling_of
from penstock.ops.entry_linear.triton_kernels import join, tiles

JOINED = 256  # outputs of a program that joins parts
NO_GATE = -1


def split_linear(
    x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, gate: int, out_MF: Tensor, tiling: Tiling | None = None
) -> None:
    """Writes `out_MF`. gate: of `gated_kernel.KINDS`, or NO_GATE. tiling: None: what suits the chip."""
    n_rows, inputs = x_MK.shape
    outputs, width = weight_NK.shape[0], out_MF.shape[1]
    tiling = tiling or tiling_of(n_rows, outputs, inputs, processors(x_MK.device))
    is_whole = tiling.parts == 1 and gate == NO_GATE
    sums_PMN = out_MF
    if not is_whole:
        sums_PMN = torch.empty((tiling.parts, n_rows, outputs), dtype=torch.float32, device=x_MK.device)
    tiles[(triton.cdiv(outputs, tiling.block_outputs), tiling.parts)](
        x_MK,
        weight_NK,
        bias_N,
        sums_PMN,
        n_rows,
        outputs,
        x_MK.stride(0),
        K=inputs,
        PARTS=tiling.parts,
        is_whole=is_whole,
        BLOCK_M=tiling.block_rows,
        BLOCK_N=tiling.block_outputs,
        BLOCK_K=BLOCK_INPUTS,
        num_warps=4,
        num_stages=4 if tiling.block_outputs <= 64 else 3,
    )
    if not is_whole:
        join[(n_rows, triton.cdiv(width, JOINED))](
            sums_PMN, bias_N, out_MF, n_rows, outputs, width, GATE=gate, PARTS=tiling.parts, BLOCK=JOINED, num_warps=4
        )


@cache
def processors(device: torch.device) -> int:
    """Of the chip; 1 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
