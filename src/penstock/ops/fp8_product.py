"""The library's product of e4m3 matrices with a scale per row of each.

`torch.nn.functional.scaled_mm` is public since torch 2.10. By rows it takes e4m3 on GPUs of compute capability 8.9 and
later and on CPUs, dimensions that are multiples of 16, and gives bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm


def fp8_product(x_MK: Tensor, x_scales_M: Tensor, weight_NK: Tensor, weight_scales_N: Tensor) -> Tensor:
    """x @ weight.T of the numbers that the rows stand for: bfloat16 [M, N]. Sums are those of the library."""
    x_scales, weight_scales = x_scales_M.unsqueeze(1), weight_scales_N.unsqueeze(0)
    by_rows = ScalingType.RowWise
    return scaled_mm(x_MK, weight_NK.t(), x_scales, by_rows, weight_scales, by_rows, output_dtype=torch.bfloat16)
