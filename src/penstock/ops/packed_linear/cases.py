"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal
from penstock.ops.packed import DENSE_FORMATS, pack
from penstock.ops.weight_format import Format

SHAPES = ((0, 64, 64), (1, 64, 64), (2, 130, 200), (5, 1, 2), (7, 100, 96), (13, 192, 1024), (33, 65, 257))


def cases(device: str) -> Iterator[Case]:
    """Tokens, outputs and inputs around the multiples of a tile. Packed weights live on the CPU."""
    generator = torch.Generator().manual_seed(9)
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2)) if device == "cpu" else ():
        for format in (DENSE_FORMATS[dtype], Format.INT8, Format.INT4):
            for tokens, outputs, inputs in SHAPES:
                x = random_normal(generator, tokens, inputs + 3, dtype=dtype, device=device)[:, :inputs]
                weight = random_normal(generator, outputs, inputs, dtype=dtype, device=device) * inputs**-0.5
                bias = random_normal(generator, outputs, dtype=dtype, device=device)
                name = f"{tokens} tokens, {outputs}x{inputs} {format.value} {dtype}"
                yield Case(name, (x, pack(weight, format), None), atol)
                yield Case(f"{name}, bias", (x, pack(weight, format), bias), atol)
