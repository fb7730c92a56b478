"""Linear layers for few tokens in one kernel; for many, a norm, the library's product, and an activation."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.chain import chain_options
from penstock.ops.entry_linear import cpu
from penstock.ops.entry_linear.triton_kernels import flat, single
from penstock.ops.gated_kernel import KINDS
from penstock.ops.rms_norm import rms_norm

FEW_TOKENS, MOST_TOKENS = 16, 64
SHORT_INPUTS, LONG_INPUTS = 1024, 4096
NO_GATE = -1


def entry_linear(
    x_TD: Tensor,
    weight_ND: Tensor,
    bias_N: Tensor | None = None,
    residual_TD: Tensor | None = None,
    norm_D: Tensor | None = None,
    eps: float = 0.0,
    is_centered: bool = False,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.entry_linear`."""
    n_tokens, inputs = x_TD.shape
    if not (_is_flat(n_tokens, inputs, activation) and weight_ND.is_contiguous() and x_TD.stride(1) == 1):
        return cpu.entry_linear(x_TD, weight_ND, bias_N, residual_TD, norm_D, eps, is_centered, activation)
    gate = NO_GATE if activation is None else KINDS[activation]
    width = weight_ND.shape[0] if activation is None else weight_ND.shape[0] // 2
    out_TN = torch.empty((n_tokens, width), dtype=x_TD.dtype, device=x_TD.device)
    if n_tokens == 1:
        return out_TN, _single(x_TD, weight_ND, bias_N, residual_TD, norm_D, eps, is_centered, gate, out_TN)
    total_TD = x_TD
    if norm_D is not None:
        x_TD, total_TD = rms_norm(x_TD, norm_D, eps, residual_TD, is_centered)
    elif residual_TD is not None:
        x_TD = total_TD = x_TD + residual_TD
    config = flat_config(n_tokens, width, gate)
    flat[(triton.cdiv(width, config["BLOCK_N"]),)](
        x_TD,
        weight_ND,
        bias_N,
        out_TN,
        n_tokens,
        width,
        x_TD.stride(0),
        K=inputs,
        GATE=gate,
        num_warps=4,
        **chain_options(x_TD.device, n_tokens),
        **config,
    )
    return out_TN, total_TD


def _is_flat(n_tokens: int, inputs: int, activation: Activation | None) -> bool:
    """Where these kernels are faster than the library's: few tokens, or an activation to save a pass for."""
    if n_tokens <= FEW_TOKENS:
        return n_tokens > 0
    return n_tokens <= MOST_TOKENS and (activation is not None or inputs <= SHORT_INPUTS)


def _single(
    x_1D: Tensor,
    weight_ND: Tensor,
    bias_N: Tensor | None,
    residual_1D: Tensor | None,
    norm_D: Tensor | None,
    eps: float,
    is_centered: bool,
    gate: int,
    out_1N: Tensor,
) -> Tensor:
    """Returns the total."""
    inputs, width = x_1D.shape[1], out_1N.shape[1]
    total_1D = x_1D
    if residual_1D is not None:
        if norm_D is None:  # then nobody but the stream itself wants the sum
            x_1D, residual_1D = x_1D + residual_1D, None
            total_1D = x_1D
        else:
            residual_1D, total_1D = residual_1D.contiguous(), torch.empty_like(x_1D)
    config = single_config(inputs, gate)
    single[(triton.cdiv(width, config["BLOCK_N"]),)](
        x_1D,
        residual_1D,
        norm_D,
        weight_ND,
        bias_N,
        out_1N,
        total_1D,
        eps,
        width,
        K=inputs,
        has_residual=residual_1D is not None,
        has_norm=norm_D is not None,
        is_centered=is_centered,
        GATE=gate,
        WHOLE_K=triton.next_power_of_2(inputs),
        **chain_options(x_1D.device, 1),
        **config,
    )
    return total_1D


def single_config(inputs: int, gate: int) -> dict[str, int]:
    """How `single` is cut: measured on an H200, for the shapes of models of 0.6 and 8 billion parameters.

    A program has some 16 to 32 KiB of weights under way, all of its rows if they are short.
    """
    is_long = inputs >= LONG_INPUTS
    block_k = LONG_INPUTS // 2 if is_long else triton.next_power_of_2(inputs)
    block_n = min(64, max(4, 8192 // block_k))
    if is_long and (gate != NO_GATE or inputs > 2 * LONG_INPUTS):
        block_n = 2
    is_wide = gate != NO_GATE or LONG_INPUTS <= inputs <= 2 * LONG_INPUTS
    return {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 8 if is_wide else 4}


def flat_config(n_tokens: int, width: int, gate: int) -> dict[str, int]:
    """How `flat` is cut: enough programs to fill the chip, from the same measurements."""
    if n_tokens <= FEW_TOKENS:
        if width <= 2048:
            return {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 256, "num_stages": 4}
        if width < 8192:
            return {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 256, "num_stages": 4}
        return {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128 if gate == NO_GATE else 64, "num_stages": 4}
    block_m = 32 if n_tokens <= 32 else 64
    if width >= 8192:
        return {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": 64, "num_stages": 3}
    return {"BLOCK_M": block_m, "BLOCK_N": 32, "BLOCK_K": 128, "num_stages": 4}
