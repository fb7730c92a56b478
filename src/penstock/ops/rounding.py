"""Numbers rounded to few bits, symmetric around zero, with the scales that give them back. One truth for all layouts.

    int8   one float32 scale per row; the largest number becomes 127 or -127
    int4   one float16 scale per row and 32 inputs; the number of largest size becomes -8
    fp8    e4m3 (4 bits of exponent, 3 of mantissa, up to 448), one float32 scale per row; the largest becomes 448

Shape letters: N rows, K inputs, G groups of 32 inputs, I inputs of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT4_GROUP = 32
FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
LEAST = 1e-30  # a row of zeros has a scale, too


def int8_rows(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(whole numbers from -127 to 127 as float32 [N, K], scales [N])."""
    wide_NK = weight_NK.float()
    scales_N = wide_NK.abs().amax(1) / 127
    return (wide_NK / scales_N.clamp_min(LEAST).unsqueeze(1)).round_(), scales_N


def int4_groups(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(whole numbers from -8 to 7 as float32 [N, G, 32], scales [N, G] in float16). K is a multiple of 32."""
    wide_NGI = weight_NK.float().view(len(weight_NK), -1, INT4_GROUP)
    # the number of largest size becomes -8: that end of the range has one step more
    largest_NG1 = wide_NGI.gather(2, wide_NGI.abs().argmax(2, keepdim=True))
    scales_NG1 = (largest_NG1 / -8).half()
    inverse_NG1 = torch.where(scales_NG1 == 0, 0.0, 1.0 / scales_NG1.float())
    return (wide_NGI * inverse_NG1).round_().clamp_(-8, 7), scales_NG1.squeeze(2)


def fp8_of_rows(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [N, K], scales [N]) of any float rows. A kernel that does the same gets the same bits."""
    wide_NK = x_NK.float()
    most_N1 = wide_NK.abs().amax(1, keepdim=True).clamp_min(LEAST)
    rounded_NK = (wide_NK * (FP8_MOST / most_N1)).clamp_(-FP8_MOST, FP8_MOST).to(FP8)
    return rounded_NK, (most_N1 / FP8_MOST).squeeze(1)
