"""The activations of gated MLPs in Triton: one kernel for all, and the function that other kernels fuse."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.activation import SWIGLU_ALPHA, SWIGLU_LIMIT, Activation
from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs

BLOCK = 1024
KINDS = {Activation.SILU: 0, Activation.GELU_TANH: 1, Activation.CLAMPED_SWIGLU: 2}
ALPHA_IN_KERNEL = tl.constexpr(SWIGLU_ALPHA)
LIMIT_IN_KERNEL = tl.constexpr(SWIGLU_LIMIT)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """[..., 2F] to [..., F]."""
    width = gate_up.shape[-1] // 2
    gate_up = gate_up.contiguous()
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        n_rows = out.numel() // width
        _gated[(n_rows, triton.cdiv(width, BLOCK))](
            gate_up, out, width, KIND=KINDS[activation], BLOCK=BLOCK, **chain_options(out.device, n_rows), num_warps=4
        )
    return out


@triton.jit
def activate(gate, up, dtype: tl.constexpr, KIND: tl.constexpr):
    """activation(gate) * up of float32 values, each intermediate rounded to `dtype` as the references do."""
    if KIND == 0:
        opened = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
        return (opened * up).to(dtype)
    if KIND == 1:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        opened = (gate * tl.sigmoid(2.0 * inner)).to(dtype).to(tl.float32)  # tanh(x) = 2 sigmoid(2x) - 1
        return (opened * up).to(dtype)
    gate = tl.minimum(gate, LIMIT_IN_KERNEL)
    up = tl.minimum(tl.maximum(up, -LIMIT_IN_KERNEL), LIMIT_IN_KERNEL)
    share = tl.sigmoid((gate * ALPHA_IN_KERNEL).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    opened = (gate * share).to(dtype).to(tl.float32)
    return ((up + 1.0).to(dtype).to(tl.float32) * opened).to(dtype)


@triton.jit
def _gated(gate_up, out, width, KIND: tl.constexpr, BLOCK: tl.constexpr, is_chained: tl.constexpr):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    start = gate_up + row * 2 * width
    if KIND == 2:  # gate and up alternate
        gate = tl.load(start + 2 * at, mask=mask, other=0.0)
        up = tl.load(start + 2 * at + 1, mask=mask, other=0.0)
    else:
        gate = tl.load(start + at, mask=mask, other=0.0)
        up = tl.load(start + width + at, mask=mask, other=0.0)
    tl.store(out + row * width + at, activate(gate.to(tl.float32), up.to(tl.float32), gate.dtype, KIND), mask=mask)
