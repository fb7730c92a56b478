"""Shape letters: T tokens, H heads, D head dim."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge attention over two disjoint sets of keys into attention over their union.

    Args:
        out_a, out_b: [tokens, heads, head_dim], any float dtype; softmax-weighted values of each part.
        lse_a, lse_b: [tokens, heads], float32, natural log; -inf where a part has no key.
    Returns: (out, lse), shaped like the inputs. `out` keeps the dtype of `out_a`; the arithmetic is float32. Where
        neither part has a key, `out` is 0 and `lse` is -inf.
    Raises: ValueError if the parts differ in shape.
    Source: online softmax as in FlashAttention-2 (arXiv 2307.08691); joins shared prefixes as in Hydragen
        (arXiv 2402.05099).
    """
    if out_a.shape != out_b.shape or lse_a.shape != lse_b.shape or out_a.shape[:-1] != lse_a.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (out_a, lse_a, out_b, lse_b))
        raise ValueError(f"merge_attention: the parts differ in shape: out_a, lse_a, out_b, lse_b are {shapes}")
    top = torch.maximum(lse_a, lse_b)
    top = torch.where(top == -torch.inf, 0.0, top)  # -inf minus -inf would be nan
    weight_a, weight_b = (lse_a - top).exp(), (lse_b - top).exp()
    total = weight_a + weight_b
    share_a = torch.where(total > 0, weight_a / total, 0.0).unsqueeze(-1)
    share_b = torch.where(total > 0, weight_b / total, 0.0).unsqueeze(-1)
    out = torch.where(share_a > 0, out_a.float() * share_a, 0.0) + torch.where(
        share_b > 0, out_b.float() * share_b, 0.0
    )
    return out.to(out_a.dtype), top + total.log()
