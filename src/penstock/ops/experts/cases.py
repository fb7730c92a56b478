"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.activation import Activation
from penstock.ops.check import Case, random_normal
from penstock.ops.quantized import FORMATS, quantize
from penstock.ops.route.reference import route
from penstock.ops.weight_format import Format


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(8)
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        for tokens, hidden, width, n_experts, top_k in (
            (0, 16, 8, 4, 2),
            (1, 64, 32, 8, 2),
            (50, 64, 32, 8, 3),
            (5, 64, 16, 64, 8),
        ):
            x = random_normal(generator, tokens, hidden, dtype=dtype, device=device)
            gate_up = random_normal(generator, n_experts, 2 * width, hidden, dtype=dtype, device=device) * hidden**-0.5
            down = random_normal(generator, n_experts, hidden, width, dtype=dtype, device=device) * width**-0.5
            logits = random_normal(generator, tokens, n_experts, dtype=dtype, device=device)
            weights, chosen = route(logits, top_k, True)
            for activation in Activation:
                case = f"{tokens} tokens, {top_k} of {n_experts} {dtype}, {activation.value}"
                yield Case(case, (x, gate_up, down, weights, chosen, activation), atol)
            gate_up_bias = random_normal(generator, n_experts, 2 * width, dtype=dtype, device=device)
            down_bias = random_normal(generator, n_experts, hidden, dtype=dtype, device=device)
            args = (x, gate_up, down, weights, chosen, Activation.CLAMPED_SWIGLU, gate_up_bias, down_bias)
            yield Case(f"{tokens} tokens, {top_k} of {n_experts} {dtype}, biased", args, atol)
            for format in FORMATS:
                rounded = quantize(gate_up, format), quantize(down, format)
                case = f"{tokens} tokens, {top_k} of {n_experts} {dtype}, {format.value}"
                # what lies between the matrices may be moved over a rounding edge of e4m3
                loose = max(atol, 5e-2) if format is Format.FP8 else atol
                yield Case(case, (x, *rounded, weights, chosen), loose)
                args = (x, *rounded, weights, chosen, Activation.CLAMPED_SWIGLU, gate_up_bias, down_bias)
                yield Case(f"{case}, biased", args, loose)
