"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(2)
    for dtype, atol in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        for tokens, heads, head_dim, pairs in (
            (1, 1, 2, 1),
            (5, 6, 64, 32),
            (40, 3, 72, 36),
            (9, 2, 64, 16),
            (0, 2, 8, 4),
        ):
            x = random_normal(generator, tokens, heads + 2, head_dim, dtype=dtype, device=device)[:, :heads]
            angles = random_normal(generator, tokens, pairs, dtype=torch.float32, device=device) * 100
            yield Case(f"{tokens}x{heads}x{head_dim}, {pairs} pairs, {dtype}", (x, angles.cos(), angles.sin()), atol)
