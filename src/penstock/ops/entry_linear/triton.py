"""Linear layers for few tokens in one kernel; for many, a norm, the library's product, and an activation."""

from __future__ import annotations

from enum import Enum

import torch
import triton
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.chain import chain_options
from penstock.ops.entry_linear import cpu
from penstock.ops.entry_linear.split import processors, split_linear
from penstock.ops.entry_linear.tiling import LEAST_ROWS, tiling_of
from penstock.ops.entry_linear.triton_kernels import flat, single
from penstock.ops.gated_kernel import KINDS
from penstock.ops.quantized import QuantizedWeight
from penstock.ops.quantized_linear import quantized_linear
from penstock.ops.rms_norm import rms_norm
from penstock.ops.tuned import GPU_NAMES, MOST_FLAT_ROWS, MOST_SINGLE_ROWS, TunedWeight

FEW_TOKENS = 16
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
    if isinstance(weight_ND, QuantizedWeight):
        return quantized_linear(x_TD, weight_ND, bias_N, residual_TD, norm_D, eps, is_centered, activation)
    n_tokens, inputs = x_TD.shape
    form = _form(n_tokens, inputs, weight_ND, activation)
    if isinstance(weight_ND, TunedWeight):
        assert weight_ND.dense is not None, "packed weights are for the CPU"
        weight_ND = weight_ND.dense
    if form is _Form.LIBRARY or not (weight_ND.is_contiguous() and x_TD.stride(1) == 1):
        return cpu.entry_linear(x_TD, weight_ND, bias_N, residual_TD, norm_D, eps, is_centered, activation)
    gate = NO_GATE if activation is None else KINDS[activation]
    width = weight_ND.shape[0] if activation is None else weight_ND.shape[0] // 2
    out_TN = torch.empty((n_tokens, width), dtype=x_TD.dtype, device=x_TD.device)
    if form is _Form.SINGLE:
        return out_TN, _single(x_TD, weight_ND, bias_N, residual_TD, norm_D, eps, is_centered, gate, out_TN)
    total_TD = x_TD
    if norm_D is not None:
        x_TD, total_TD = rms_norm(x_TD, norm_D, eps, residual_TD, is_centered)
    elif residual_TD is not None:
        x_TD = total_TD = x_TD + residual_TD
    if form is _Form.SPLIT:
        split_linear(x_TD, weight_ND, bias_N, gate, out_TN)
        return out_TN, total_TD
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


class _Form(Enum):
    """SPLIT: the flat product where `flat`'s tiles would leave processors idle, or rows empty."""

    SINGLE = "single"
    FLAT = "flat"
    SPLIT = "split"
    LIBRARY = "library"


def _form(n_tokens: int, inputs: int, weight_ND: Tensor, activation: Activation | None) -> _Form:
    """As the weight was tuned, or else by what was measured on an H200."""
    if not isinstance(weight_ND, TunedWeight):
        if not _is_flat(n_tokens, inputs, activation):
            return _Form.LIBRARY
        return _Form.SINGLE if n_tokens == 1 else _Form.FLAT
    which = GPU_NAMES[weight_ND.cuts.pick(n_tokens)]
    if which == "single" and 0 < n_tokens <= MOST_SINGLE_ROWS:
        return _Form.SINGLE
    if which == "library" or not 0 < n_tokens <= MOST_FLAT_ROWS:
        return _Form.LIBRARY
    outputs = weight_ND.shape[0]
    is_narrow = tiling_of(n_tokens, outputs, inputs, processors(weight_ND.device)).parts > 1
    return _Form.SPLIT if is_narrow or n_tokens <= LEAST_ROWS else _Form.FLAT


def _is_flat(n_tokens: int, inputs: int, activation: Activation | None) -> bool:
    """Where these kernels are faster than the library's: few tokens, or an activation to save a pass for."""
    if n_tokens <= FEW_TOKENS:
        return n_tokens > 0
    return n_tokens <= MOST_FLAT_ROWS and (activation is not None or inputs <= SHORT_INPUTS)


def _single(
    x_TD: Tensor,
    weight_ND: Tensor,
    bias_N: Tensor | None,
    residual_TD: Tensor | None,
    norm_D: Tensor | None,
    eps: float,
    is_centered: bool,
    gate: int,
    out_TN: Tensor,
) -> Tensor:
    """Returns the total."""
    n_tokens, inputs, width = *x_TD.shape, out_TN.shape[1]
    total_TD = x_TD
    if residual_TD is not None:
        if norm_D is None:  # then nobody but the stream itself wants the sum
            x_TD, residual_TD = x_TD + residual_TD, None
            total_TD = x_TD
        else:
            residual_TD = residual_TD.contiguous()
            total_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    config = single_config(inputs, gate)
    single[(triton.cdiv(width, config["BLOCK_N"]), n_tokens)](
        x_TD,
        residual_TD,
        norm_D,
        weight_ND,
        bias_N,
        out_TN,
        total_TD,
        eps,
        width,
        x_TD.stride(0),
        K=inputs,
        has_residual=residual_TD is not None,
        has_norm=norm_D is not None,
        is_centered=is_centered,
        GATE=gate,
        WHOLE_K=triton.next_power_of_2(inputs),
        **chain_options(x_TD.device, n_tokens),
        **config,
    )
    return total_TD


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
