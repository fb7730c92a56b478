"""Few tokens: one kernel that reads the weights as they are stored. Many: the library's products.

fp8 rounds the tokens first (`fp8_rows`, with the norm), and the library multiplies e4m3 numbers. int8 and int4 weights
are restored for the library in the dtype of the tokens, a matrix at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
import triton
from torch import Tensor

from penstock.ops.activation import Activation
from penstock.ops.chain import chain_options
from penstock.ops.fp8_product import fp8_product
from penstock.ops.fp8_rows import fp8_rows
from penstock.ops.gated import GATED
from penstock.ops.gated_kernel import KINDS
from penstock.ops.quantized_kernel import SCHEMES
from penstock.ops.quantized_linear import reference
from penstock.ops.quantized_linear.triton_kernels import flat, restore, single
from penstock.ops.rms_norm import rms_norm
from penstock.ops.weight_format import Format

if TYPE_CHECKING:
    from penstock.ops.quantized import QuantizedWeight

FEW_TOKENS, MOST_TOKENS = 16, 64  # of the kernels here; not measured yet
RESTORED_ROWS, RESTORED_INPUTS = 8, 512  # of a program
NO_GATE = -1


def quantized_linear(
    x_TD: Tensor,
    weight_ND: QuantizedWeight,
    bias_N: Tensor | None = None,
    residual_TD: Tensor | None = None,
    norm_D: Tensor | None = None,
    eps: float = 0.0,
    is_centered: bool = False,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.quantized_linear`."""
    n_tokens = len(x_TD)
    x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
    is_fp8 = weight_ND.format is Format.FP8
    if n_tokens == 1 and not is_fp8:
        return _of_one(x_TD, weight_ND, bias_N, residual_TD, norm_D, eps, is_centered, activation)
    scales_T: Tensor | None = None
    dtype = x_TD.dtype
    if is_fp8:
        x_TD, scales_T, total_TD = fp8_rows(x_TD, norm_D, eps, residual_TD, is_centered)
    elif norm_D is not None:
        x_TD, total_TD = rms_norm(x_TD, norm_D, eps, residual_TD, is_centered)
    else:
        x_TD = total_TD = x_TD if residual_TD is None else x_TD + residual_TD
    if not 0 < n_tokens <= MOST_TOKENS:
        out_TN = _of_many(x_TD, scales_T, weight_ND, bias_N, dtype)
        return out_TN if activation is None else GATED[activation](out_TN), total_TD
    width = weight_ND.outputs if activation is None else weight_ND.outputs // 2
    out_TN = torch.empty((n_tokens, width), dtype=dtype, device=x_TD.device)
    gate = NO_GATE if activation is None else KINDS[activation]
    if n_tokens == 1:
        _launch_single(x_TD, scales_T, None, None, weight_ND, bias_N, out_TN, x_TD, 0.0, False, gate)
    else:
        _launch_flat(x_TD, scales_T, weight_ND, bias_N, out_TN, gate)
    return out_TN, total_TD


def _of_one(
    x_1D: Tensor,
    weight_ND: QuantizedWeight,
    bias_N: Tensor | None,
    residual_1D: Tensor | None,
    norm_D: Tensor | None,
    eps: float,
    is_centered: bool,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    """A token that is not rounded: the norm is part of the kernel."""
    total_1D = x_1D
    if residual_1D is not None:
        if norm_D is None:  # then nobody but the stream itself wants the sum
            total_1D, residual_1D = x_1D + residual_1D, None
            x_1D = total_1D
        else:
            residual_1D, total_1D = residual_1D.contiguous(), torch.empty_like(x_1D)
    width = weight_ND.outputs if activation is None else weight_ND.outputs // 2
    out_1N = torch.empty((1, width), dtype=x_1D.dtype, device=x_1D.device)
    gate = NO_GATE if activation is None else KINDS[activation]
    _launch_single(x_1D, None, residual_1D, norm_D, weight_ND, bias_N, out_1N, total_1D, eps, is_centered, gate)
    return out_1N, total_1D


def _of_many(
    x_TD: Tensor, scales_T: Tensor | None, weight_ND: QuantizedWeight, bias_N: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if scales_T is None:
        return F.linear(x_TD, _restored(weight_ND, dtype), bias_N)
    if dtype is not torch.bfloat16:  # what the library gives; others are refused while a model loads
        return reference.exact_product(x_TD, scales_T, weight_ND, bias_N).to(dtype)
    out_TN = fp8_product(x_TD, scales_T, weight_ND.numbers, weight_ND.scales)
    return out_TN if bias_N is None else out_TN.add_(bias_N)


def _restored(weight_ND: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The matrix in the dtype of the tokens."""
    dense_ND = torch.empty(weight_ND.shape, dtype=dtype, device=weight_ND.numbers.device)
    restore[(triton.cdiv(weight_ND.outputs, RESTORED_ROWS), triton.cdiv(weight_ND.inputs, RESTORED_INPUTS))](
        weight_ND.numbers,
        weight_ND.scales,
        dense_ND,
        weight_ND.outputs,
        K=weight_ND.inputs,
        SCHEME=SCHEMES[weight_ND.format],
        BLOCK_N=RESTORED_ROWS,
        BLOCK_K=RESTORED_INPUTS,
        num_warps=4,
    )
    return dense_ND


def _launch_single(
    x_1D: Tensor,
    x_scales_1: Tensor | None,
    residual_1D: Tensor | None,
    norm_D: Tensor | None,
    weight_ND: QuantizedWeight,
    bias_N: Tensor | None,
    out_1N: Tensor,
    total_1D: Tensor,
    eps: float,
    is_centered: bool,
    gate: int,
) -> None:
    inputs, width = weight_ND.inputs, out_1N.shape[1]
    config = single_config(inputs, gate)
    single[(triton.cdiv(width, config["BLOCK_N"]),)](
        x_1D,
        x_scales_1,
        residual_1D,
        norm_D,
        weight_ND.numbers,
        weight_ND.scales,
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
        SCHEME=SCHEMES[weight_ND.format],
        WHOLE_K=triton.next_power_of_2(inputs),
        **chain_options(x_1D.device, 1),
        **config,
    )


def _launch_flat(
    x_TD: Tensor, scales_T: Tensor | None, weight_ND: QuantizedWeight, bias_N: Tensor | None, out_TN: Tensor, gate: int
) -> None:
    n_tokens, width = out_TN.shape
    config = flat_config(n_tokens, width, gate)
    flat[(triton.cdiv(width, config["BLOCK_N"]),)](
        x_TD,
        scales_T,
        weight_ND.numbers,
        weight_ND.scales,
        bias_N,
        out_TN,
        n_tokens,
        width,
        x_TD.stride(0),
        K=weight_ND.inputs,
        GATE=gate,
        SCHEME=SCHEMES[weight_ND.format],
        num_warps=4,
        **chain_options(x_TD.device, n_tokens),
        **config,
    )


def single_config(inputs: int, gate: int) -> dict[str, int]:
    """How `single` is cut: as many weights under way as in `entry_linear`, in fewer bytes. Not measured yet."""
    block_k = max(32, min(2048, triton.next_power_of_2(inputs)))
    block_n = min(64, max(4, 8192 // block_k))
    return {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 8 if gate != NO_GATE or inputs > 8192 else 4}


def flat_config(n_tokens: int, width: int, gate: int) -> dict[str, int]:
    """How `flat` is cut: as in `entry_linear`, with longer rows, for they are fewer bytes. Not measured yet."""
    if n_tokens <= FEW_TOKENS:
        block_n, block_k = (16 if width <= 2048 else 32), (256 if gate == NO_GATE else 128)
        return {"BLOCK_M": 16, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_stages": 4}
    block_m = 32 if n_tokens <= 32 else 64
    return {"BLOCK_M": block_m, "BLOCK_N": 32 if width < 8192 else 64, "BLOCK_K": 128, "num_stages": 3}
