"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(9)
    for dtype, atol in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        for tokens, heads, head_dim in ((0, 2, 8), (1, 1, 64), (9, 6, 72)):
            out = random_normal(generator, tokens, heads, head_dim, dtype=dtype, device=device)
            lse = random_normal(generator, tokens, heads, dtype=torch.float32, device=device) * 4
            sinks = random_normal(generator, heads, dtype=dtype, device=device)
            yield Case(f"{tokens}x{heads}x{head_dim} {dtype}", (out, lse, sinks), atol)
            nothing = torch.full_like(lse, -torch.inf)
            yield Case(f"{tokens}x{heads}x{head_dim} {dtype}, no keys", (out * 0, nothing, sinks), atol)
