"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(1)
    for dtype, atol in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        for shape in ((1, 64), (5, 96), (33, 4096), (0, 64), (7, 6, 128)):
            x = random_normal(generator, *shape, dtype=dtype, device=device)
            residual = random_normal(generator, *shape, dtype=dtype, device=device)
            weight = random_normal(generator, *shape[1:], dtype=dtype, device=device)
            yield Case(f"{shape} {dtype}", (x, weight, 1e-6), atol)
            yield Case(f"{shape} {dtype} with residual", (x, weight, 1e-6, residual), atol)
            yield Case(f"{shape} {dtype} centered", (x, weight, 1e-6, residual, True), atol)
        wide = random_normal(generator, 4, 10, 64, dtype=dtype, device=device)
        weight = random_normal(generator, 6, 64, dtype=dtype, device=device)
        yield Case(f"part of the heads {dtype}", (wide[:, :6], weight, 1e-6), atol)
