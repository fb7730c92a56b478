"""Shape letters: any leading dimensions ..., N outputs, K inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

if TYPE_CHECKING:
    from penstock.ops.packed import PackedWeight


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, with the roundings that the weight's format stands for.

    Args:
        x: [..., K], float32 or bfloat16, the dtype that the weight was packed for.
        weight: [N, K], from `penstock.ops.packed.pack`. Integer weights round x to 8 bits by group, too.
        bias: [N], in the dtype of x; added to what the product was rounded to.
    Returns: [..., N] in the dtype of x; sums are float32.
    Source: dynamic 8-bit activations as in LLM.int8 (arXiv 2208.07339) without outliers apart; groups as in GGML.
    """
    product = F.linear(weight.activations(x), weight.dense(torch.float32)).to(x.dtype)
    return product if bias is None else product + bias
