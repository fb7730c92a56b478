"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.activation import Activation
from penstock.ops.check import Case, random_normal
from penstock.ops.quantized import quantize
from penstock.ops.weight_format import Format

SHAPES = ((0, 64, 32), (1, 64, 128), (2, 96, 192), (1, 64, 80), (9, 144, 160), (70, 64, 64))  # tokens, outputs, inputs
ODD = ((3, 33, 50), (66, 33, 600))  # fp8 takes multiples of 16 only


def cases(device: str) -> Iterator[Case]:
    """Tokens on both sides of what the kernels for few tokens take."""
    generator = torch.Generator().manual_seed(15)
    for dtype, atol in ((torch.float32, 2e-5), (torch.bfloat16, 6e-2)):
        for format in (Format.FP8, Format.INT8, Format.INT4):
            for tokens, outputs, inputs in SHAPES if format is Format.FP8 else (*SHAPES, *ODD):
                x, residual = (random_normal(generator, tokens, inputs, dtype=dtype, device=device) for _ in range(2))
                dense = random_normal(generator, outputs, inputs, dtype=dtype, device=device) * inputs**-0.5
                weight = quantize(dense, format)
                bias = random_normal(generator, outputs, dtype=dtype, device=device)
                norm = random_normal(generator, inputs, dtype=dtype, device=device)
                # a norm summed in another order may move a number over a rounding edge of e4m3
                loose = max(atol, 5e-2) if format is Format.FP8 else atol
                name = f"{format.value}, {tokens} tokens, {outputs}x{inputs} {dtype}"
                yield Case(name, (x, weight), atol)
                yield Case(f"{name}, normed", (x, weight, bias, residual, norm, 1e-6), loose)
                yield Case(f"{name}, centered", (x, weight, None, None, norm, 1e-6, True), loose)
                if outputs % 2 == 0:
                    for activation in Activation:
                        case = f"{name}, {activation.value}"
                        yield Case(case, (x, weight, bias, residual, norm, 1e-6, False, activation), loose)
