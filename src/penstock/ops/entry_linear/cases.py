"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.activation import Activation
from penstock.ops.check import Case, random_normal

SHAPES = ((0, 64, 32), (1, 64, 128), (1, 50, 96), (2, 64, 96), (9, 130, 160), (70, 64, 64))  # tokens, outputs, inputs


def cases(device: str) -> Iterator[Case]:
    """Tokens on both sides of what the kernels for few tokens take."""
    generator = torch.Generator().manual_seed(11)
    for dtype, atol in ((torch.float32, 2e-5), (torch.bfloat16, 5e-2)):
        for tokens, outputs, inputs in SHAPES:
            x, residual = (random_normal(generator, tokens, inputs, dtype=dtype, device=device) for _ in range(2))
            weight = random_normal(generator, outputs, inputs, dtype=dtype, device=device) * inputs**-0.5
            bias = random_normal(generator, outputs, dtype=dtype, device=device)
            norm = random_normal(generator, inputs, dtype=dtype, device=device)
            name = f"{tokens} tokens, {outputs}x{inputs} {dtype}"
            yield Case(name, (x, weight), atol)
            yield Case(f"{name}, normed", (x, weight, bias, residual, norm, 1e-6), atol)
            yield Case(f"{name}, centered", (x, weight, None, None, norm, 1e-6, True), atol)
            for activation in Activation:
                case = f"{name}, {activation.value}"
                yield Case(case, (x, weight, bias, residual, norm, 1e-6, False, activation), atol)
