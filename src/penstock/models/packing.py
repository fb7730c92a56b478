"""How the matrices of a model lie in memory: as the checkpoint has them, in panels for a CPU, or rounded by rows.

    on a CPU   floats, int8 and int4 in the panels of the C++ kernels (`ops/packed.py`); fp8 by rows, in torch
    on a GPU   fp8, int8 and int4 by rows (`ops/quantized.py`); floats as they are

A parameter is rounded as soon as it is there, on its device: beside what is kept, loading needs the largest parameter
once in the dtype of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.core.errors import UnknownName, UnsupportedModel
from penstock.models.checkpoint import Checkpoint
from penstock.models.parameters import Parameter
from penstock.models.rounded import QUANTIZATIONS, bytes_by_rows, is_matrix, is_rounded
from penstock.models.stored_fp8 import row_scales
from penstock.ops.huge_pages import Arena
from penstock.ops.packed import DENSE_FORMATS, pack, pack_stack, packed_bytes
from penstock.ops.quantized import QuantizedStack, QuantizedWeight, of_rows, quantize
from penstock.ops.rounding import FP8
from penstock.ops.weight_format import Format

FP8_CAPABILITY = (8, 9)
FP8_MULTIPLE = 16  # outputs and inputs that the library's product of e4m3 numbers takes


@dataclass(frozen=True, slots=True)
class Packing:
    """has_rows: by rows instead of in panels."""

    format: Format
    has_rows: bool

    def format_of(self, parameter: Parameter, dtype: torch.dtype) -> Format | None:
        """None: the parameter stays as it is."""
        if not is_matrix(parameter):
            return None
        if is_rounded(parameter, self.format):
            return self.format
        return None if self.has_rows else DENSE_FORMATS[dtype]


def packing_of(dtype: torch.dtype, device: torch.device, quantization: str, is_packed: bool) -> Packing | None:
    """How matrices are laid out; None: as the checkpoint has them.

    is_packed: lay floats out for the C++ kernels of the CPU, too. Raises UnsupportedModel, or UnknownName.
    """
    if quantization not in QUANTIZATIONS:
        raise UnknownName("quantization", quantization, QUANTIZATIONS)
    is_cpu = device.type == "cpu"
    if quantization == "none":
        format = DENSE_FORMATS.get(dtype) if is_packed and is_cpu else None
        return None if format is None else Packing(format, has_rows=False)
    format = Format(quantization)
    if is_cpu and format is not Format.FP8:
        if dtype not in DENSE_FORMATS:
            raise UnsupportedModel(
                f"--quantize {quantization} takes float32 or bfloat16 activations on a CPU, not {dtype}; see --dtype"
            )
        return Packing(format, has_rows=False)
    if device.type == "cuda" and format is Format.FP8:
        _refuse_slow_fp8(dtype, device)
    return Packing(format, has_rows=True)


def parameter_bytes(
    parameter: Parameter, dtype: torch.dtype, quantization: str = "none", device_type: str = "cpu"
) -> int:
    """Memory that one parameter takes on a type of device. Raises UnknownName."""
    is_by_rows = device_type != "cpu" or quantization in ("none", Format.FP8.value)
    if is_by_rows or quantization not in QUANTIZATIONS:
        return bytes_by_rows(parameter, quantization, dtype.itemsize)
    format = Packing(Format(quantization), has_rows=False).format_of(parameter, dtype)
    return parameter.elements * dtype.itemsize if format is None else packed_bytes(format, parameter.shape)


class Packer:
    """Matrices that a linear layer multiplies by are packed or rounded; norms and biases stay."""

    def __init__(self, packing: Packing | None) -> None:
        self._packing = packing
        self._arena = Arena()

    def __call__(self, parameter: Parameter, tensor: Tensor) -> Tensor:
        """Raises UnsupportedModel for a matrix that fp8 products on a GPU do not take."""
        format = None if self._packing is None else self._packing.format_of(parameter, tensor.dtype)
        if self._packing is None or format is None:
            return tensor
        if not self._packing.has_rows:
            return (pack if tensor.dim() == 2 else pack_stack)(tensor, format, arena=self._arena)
        if format is Format.FP8:
            _refuse_odd(parameter, tensor)
        return quantize(tensor, format)


def load_fp8(
    parameter: Parameter, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> QuantizedWeight | QuantizedStack | None:
    """A matrix whose checkpoint has e4m3 numbers with scales per row or tensor, bit by bit; None for all others."""
    if any(part.is_transposed or not checkpoint.is_fp8(part) for part in parameter.parts):
        return None
    numbers = torch.empty(parameter.shape, dtype=FP8, device=device)
    scales = torch.empty(parameter.shape[:-1], dtype=torch.float32, device=device)
    for part in parameter.parts:
        by_row = row_scales(checkpoint.copy_fp8(part, numbers[part.index]), part.shape[0])
        if by_row is None:
            return None
        rows = part.take[0] if part.take else slice(None)
        scales[part.index[: scales.dim()]] = by_row[rows]
    _refuse_odd(parameter, numbers)
    return of_rows(Format.FP8, parameter.shape, dtype, numbers.flatten(0, -2), scales.flatten())


def _refuse_odd(parameter: Parameter, tensor: Tensor) -> None:
    rows, columns = tensor.shape[-2:]
    if tensor.is_cuda and (rows % FP8_MULTIPLE or columns % FP8_MULTIPLE):
        raise UnsupportedModel(
            f"{parameter.name} is {rows}x{columns}: --quantize fp8 on a GPU takes multiples of {FP8_MULTIPLE}. "
            "Give --quantize int8"
        )


def _refuse_slow_fp8(dtype: torch.dtype, device: torch.device) -> None:
    if dtype is not torch.bfloat16:
        raise UnsupportedModel(f"--quantize fp8 on a GPU takes bfloat16 activations, not {dtype}: --dtype bfloat16")
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise UnsupportedModel(
            f"--quantize fp8 needs a GPU of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or later, "
            f"this one has {capability[0]}.{capability[1]}: give --quantize int8 or int4"
        )
