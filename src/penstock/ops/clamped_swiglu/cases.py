"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(3)
    for dtype, atol in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        for tokens, width in ((0, 8), (1, 1), (7, 96), (33, 1000)):
            gate_up = random_normal(generator, tokens, 2 * width, dtype=dtype, device=device) * 6
            yield Case(f"{tokens}x{width} {dtype}", (gate_up,), atol)
