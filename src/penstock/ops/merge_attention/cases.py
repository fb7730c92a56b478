"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(5)
    for dtype, atol in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        for tokens, heads, head_dim in ((1, 1, 8), (6, 3, 72), (0, 2, 64)):
            out_a, out_b = (random_normal(generator, tokens, heads, head_dim, dtype=dtype, device=device) for _ in "ab")
            lse_a, lse_b = (
                random_normal(generator, tokens, heads, dtype=torch.float32, device=device) * 50 for _ in "ab"
            )
            lse_a[1::3] = -torch.inf
            lse_b[2::3] = -torch.inf
            lse_a[4:5], lse_b[4:5] = -torch.inf, -torch.inf
            yield Case(f"{tokens}x{heads}x{head_dim} {dtype}", (out_a, lse_a, out_b, lse_b), atol)
