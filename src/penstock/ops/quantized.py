"""Weight matrices of few bits, row by row: as the GPU's kernels read them. The reference reads them on any device.

The numbers are those of `rounding.py`, so an int8 or int4 weight here is, number for number, the one that the kernels
of the CPU get in their panels (`packed.py`); activations stay what they are. With fp8 weights activations are rounded
to e4m3, too, a scale per token, in every batch alike.

    fp8, int8   [N, K], scales [N] float32
    int4        [N, K / 2] bytes, K filled up to whole groups of 32; byte j of a group's 16 holds inputs j (low) and
                j + 16, each as value + 8; scales [N, K / 32] float16: 4.5 bits per weight

Shape letters: E experts, N outputs, K inputs, B bytes or numbers of a row, G groups.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.ops.linear_weight import LinearWeight, WeightStack
from penstock.ops.quantized_linear import quantized_linear
from penstock.ops.rounding import FP8, INT4_GROUP, fp8_of_rows, int4_groups, int8_rows
from penstock.ops.weight_format import Format

ELEMENTS_AT_ONCE = 1 << 24  # bounds the float32 copies that rounding makes: 64 MiB each
HALF = INT4_GROUP // 2
FORMATS = (Format.FP8, Format.INT8, Format.INT4)


class QuantizedWeight(LinearWeight):
    """[N, K] to whoever asks, of the dtype of its activations. numbers, scales: as `quantize` made them."""

    format: Format
    numbers: Tensor
    scales: Tensor
    outputs: int
    inputs: int
    compute_dtype: torch.dtype

    @staticmethod
    def __new__(
        cls, format: Format, inputs: int, dtype: torch.dtype, numbers: Tensor, scales: Tensor
    ) -> QuantizedWeight:
        shape = (len(numbers), inputs)
        weight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=numbers.device)
        assert isinstance(weight, QuantizedWeight)
        weight.format, weight.numbers, weight.scales = format, numbers, scales
        weight.outputs, weight.inputs = shape
        weight.compute_dtype = dtype
        return weight

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantizedWeight({self.outputs}x{self.inputs}, {self.format.value})"

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that lie in memory."""
        return self.numbers.nbytes + self.scales.nbytes

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ self.T + bias, by the op."""
        return quantized_linear(x, self, bias)[0]

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the matrix: [*ids, K], in the compute dtype."""
        of_ids = ids.flatten()
        rows_TK = restored(self.format, self.numbers[of_ids], self.scales[of_ids])[:, : self.inputs]
        return rows_TK.to(self.compute_dtype).view(*ids.shape, self.inputs)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix [N, K]."""
        return restored(self.format, self.numbers, self.scales)[:, : self.inputs].to(dtype)


class QuantizedStack(WeightStack):
    """[E, N, K] to whoever asks: the matrices of experts, numbers [E, N, B] and scales [E, N] or [E, N, G]."""

    format: Format
    numbers: Tensor
    scales: Tensor
    inputs: int
    compute_dtype: torch.dtype

    @staticmethod
    def __new__(
        cls, format: Format, inputs: int, dtype: torch.dtype, numbers: Tensor, scales: Tensor
    ) -> QuantizedStack:
        shape = (*numbers.shape[:2], inputs)
        stack = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=numbers.device)
        assert isinstance(stack, QuantizedStack)
        stack.format, stack.numbers, stack.scales = format, numbers, scales
        stack.inputs, stack.compute_dtype = inputs, dtype
        return stack

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantizedStack({'x'.join(map(str, self.shape))}, {self.format.value})"

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that lie in memory."""
        return self.numbers.nbytes + self.scales.nbytes

    def matrix(self, expert: int) -> QuantizedWeight:
        """[N, K] of one expert; a view."""
        return QuantizedWeight(self.format, self.inputs, self.compute_dtype, self.numbers[expert], self.scales[expert])


def quantize(weight: Tensor, format: Format) -> QuantizedWeight | QuantizedStack:
    """Round a matrix [N, K], or a stack [E, N, K] of them, on its own device.

    Besides the result it takes some copies of `ELEMENTS_AT_ONCE` float32 numbers, whatever the size of the weight.
    Raises: ValueError for a format of no bits to save.
    """
    if format not in FORMATS:
        raise ValueError(f"{format.value} is not rounded to: {', '.join(f.value for f in FORMATS)} are")
    n_inputs = weight.shape[-1]
    rows_NK = weight.reshape(-1, n_inputs)
    numbers, scales = _empty(format, len(rows_NK), n_inputs, weight.device)
    n_at_once = max(1, ELEMENTS_AT_ONCE // max(1, n_inputs))
    for start in range(0, len(rows_NK), n_at_once):
        piece = slice(start, start + n_at_once)
        numbers[piece], scales[piece] = _rounded(rows_NK[piece], format)
    return of_rows(format, weight.shape, weight.dtype, numbers, scales)


def of_rows(
    format: Format, shape: tuple[int, ...], dtype: torch.dtype, numbers_NB: Tensor, scales: Tensor
) -> QuantizedWeight | QuantizedStack:
    """A weight of `shape`, [N, K] or [E, N, K], from the rows of all its matrices."""
    if len(shape) == 2:
        return QuantizedWeight(format, shape[1], dtype, numbers_NB, scales)
    lead = shape[:2]
    return QuantizedStack(format, shape[2], dtype, numbers_NB.view(*lead, -1), scales.view(*lead, *scales.shape[1:]))


def quantized_bytes(format: Format, shape: tuple[int, ...]) -> int:
    """Memory that an [N, K] matrix, or a stack [E, N, K] of them, will take."""
    return math.prod(shape[:-1]) * format.row_bytes(shape[-1])


def restored(format: Format, numbers_NB: Tensor, scales: Tensor) -> Tensor:
    """The numbers that rows stand for: float32 [N, K], of int4 with what fills the last group up."""
    if format is not Format.INT4:
        return numbers_NB.float() * scales.unsqueeze(-1)
    bytes_NGH = numbers_NB.view(*numbers_NB.shape[:-1], -1, HALF)
    values = torch.cat((bytes_NGH & 15, bytes_NGH >> 4), dim=-1).float() - 8
    return (values * scales.float().unsqueeze(-1)).flatten(-2)


def _empty(format: Format, n_rows: int, n_inputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    n_groups = -(-n_inputs // INT4_GROUP)
    if format is Format.INT4:
        numbers = torch.empty((n_rows, n_groups * HALF), dtype=torch.uint8, device=device)
        return numbers, torch.empty((n_rows, n_groups), dtype=torch.float16, device=device)
    number_dtype = FP8 if format is Format.FP8 else torch.int8
    scales = torch.empty(n_rows, dtype=torch.float32, device=device)
    return torch.empty((n_rows, n_inputs), dtype=number_dtype, device=device), scales


def _rounded(rows_NK: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    match format:
        case Format.FP8:
            return fp8_of_rows(rows_NK)
        case Format.INT8:
            rounded_NK, scales_N = int8_rows(rows_NK)
            return rounded_NK.to(torch.int8), scales_N
        case _:
            rounded_NGI, scales_NG = int4_groups(F.pad(rows_NK, (0, -rows_NK.shape[1] % INT4_GROUP)))
            low, high = torch.split(rounded_NGI.add_(8).to(torch.uint8), HALF, dim=2)
            return (low | high << 4).flatten(1), scales_NG
