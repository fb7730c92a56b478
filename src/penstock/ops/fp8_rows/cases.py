"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    """Without a norm every number is the same. With one, a sum in another order may move a number over a rounding edge.

    The step between neighbours in e4m3 is an eighth of a number at most.
    """
    generator = torch.Generator().manual_seed(14)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens, features in ((0, 64), (1, 64), (5, 96), (3, 4096)):
            x, residual = (random_normal(generator, tokens, features, dtype=dtype, device=device) for _ in range(2))
            norm = random_normal(generator, features, dtype=dtype, device=device)
            name = f"{tokens}x{features} {dtype}"
            yield Case(name, (x,), 1e-6)  # torch on a GPU multiplies by 1 / 448 instead of dividing
            yield Case(f"{name}, residual", (x, None, 0.0, residual), 1e-6)
            yield Case(f"{name}, normed", (x, norm, 1e-6, residual), 0.126)
            yield Case(f"{name}, centered", (x, norm, 1e-6, residual, True), 0.126)
        x = random_normal(generator, 4, 64, dtype=dtype, device=device)
        x[1], x[2, 3] = 0.0, 1e4
        yield Case(f"a row of zeros, a row with one large number, {dtype}", (x,), 0.0)
