"""Weight matrices as the C++ kernels read them, packed once while a model loads.

A `PackedWeight` stands wherever the matrix stood: it is a tensor to `F.linear` and `F.embedding` and to nothing else,
so that a decoder needs no second kind of layer. Outputs lie in panels of 64; within one, the inputs that an instruction
takes at once stand together (`_Layout`). Quantization is symmetric:

    int8   one float32 scale per output; weights stand as value + 128
    int4   one float16 scale per output and 32 inputs; weights stand as value + 8, two in a byte

and the activations of both are rounded to 8 bits, with a scale per token and group of inputs, in every batch alike.

Shape letters: N outputs, K inputs, P panels of 64 outputs (the last filled up with zeros), T tokens or ids, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.ops import native
from penstock.ops.huge_pages import Arena
from penstock.ops.linear_weight import LinearWeight, WeightStack
from penstock.ops.packed_linear import packed_linear
from penstock.ops.rounding import INT4_GROUP, int4_groups, int8_rows
from penstock.ops.weight_format import Format

PANEL = 64
ROWS_AT_ONCE = 64 * PANEL  # bounds the float32 copies that quantizing makes


DENSE_FORMATS = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16}


class PackedWeight(LinearWeight):
    """[N, K] to whoever asks, of the dtype of its activations. data, scales: as `pack` made them."""

    format: Format
    data_packed: Tensor
    scales_N: Tensor | None
    outputs: int
    inputs: int
    compute_dtype: torch.dtype
    described: native.Weight

    @staticmethod
    def __new__(
        cls, format: Format, shape: tuple[int, int], dtype: torch.dtype, data: Tensor, scales: Tensor | None
    ) -> PackedWeight:
        weight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))
        assert isinstance(weight, PackedWeight)
        weight.format, weight.data_packed, weight.scales_N = format, data, scales
        weight.outputs, weight.inputs = shape
        weight.compute_dtype = dtype
        together = 2 if format is Format.BFLOAT16 else 1  # the kernel takes pairs; whole groups it fills up itself
        weight.described = native.Weight(
            data=data.data_ptr(),
            scale=None if scales is None else scales.data_ptr(),
            format=format.code,
            n=weight.outputs,
            k=-(-weight.inputs // together) * together,
        )
        return weight

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedWeight({self.outputs}x{self.inputs}, {self.format.value})"

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that lie in memory."""
        return self.data_packed.nbytes + (0 if self.scales_N is None else self.scales_N.nbytes)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ self.T + bias, by the op."""
        return packed_linear(x, self, bias)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the matrix as it would have to be to give the same results: [*ids, K], in the compute dtype."""
        rows_TK = _LAYOUTS[self.format].rows(self, ids.flatten())[:, : self.inputs]
        return rows_TK.to(self.compute_dtype).view(*ids.shape, self.inputs)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix [N, K]: the truth for tests, and the slow way on a machine without the kernels."""
        return _LAYOUTS[self.format].rows(self, torch.arange(self.outputs))[:, : self.inputs].to(dtype)

    def activations(self, x: Tensor) -> Tensor:
        """What the kernel makes of its input: float32 [..., K], rounded to 8 bits by group if weights are integers."""
        group = self.format.activation_group
        if group is None:
            return x.float()
        padded = F.pad(x.float(), (0, -x.shape[-1] % group))
        x_G = padded.view(*x.shape[:-1], padded.shape[-1] // group, group)
        scale = x_G.abs().amax(-1, keepdim=True) / 127
        return ((x_G / scale.clamp_min(1e-30)).round() * scale).flatten(-2)[..., : x.shape[-1]]


def pack(
    weight_NK: Tensor, format: Format, dtype: torch.dtype | None = None, arena: Arena | None = None
) -> PackedWeight:
    """Lay a matrix out for the kernels, quantized if the format is an integer one.

    Args:
        weight_NK: on the CPU, any float dtype.
        dtype: of the activations; None: that of the weight. FLOAT32 and BFLOAT16 are for activations of their own.
        arena: where the numbers are to lie; None: wherever torch puts them.
    Raises: ValueError for a dense format that is not the dtype's.
    """
    dtype = dtype or weight_NK.dtype
    if format in DENSE_FORMATS.values() and DENSE_FORMATS.get(dtype) is not format:
        raise ValueError(f"a weight packed as {format.value} cannot meet activations of {dtype}")
    n_outputs, n_inputs = weight_NK.shape
    layout = _LAYOUTS[format]
    parts = [layout.packed(padded) for padded in _padded(weight_NK, format.together)]
    data = torch.cat([data for data, _ in parts]) if len(parts) > 1 else parts[0][0]
    scales = [scales for _, scales in parts if scales is not None]
    if arena is not None:
        data = arena.place(data)
    return PackedWeight(format, (n_outputs, n_inputs), dtype, data, torch.cat(scales) if scales else None)


class PackedStack(WeightStack):
    """[E, N, K] to whoever asks: packed matrices of E experts, and nothing but to be indexed by one of them."""

    matrices: tuple[PackedWeight, ...]

    @staticmethod
    def __new__(cls, matrices: tuple[PackedWeight, ...]) -> PackedStack:
        first = matrices[0]
        shape = (len(matrices), *first.shape)
        stack = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=first.dtype, device=first.device)
        assert isinstance(stack, PackedStack)
        stack.matrices = matrices
        return stack

    def matrix(self, expert: int) -> PackedWeight:
        """[N, K] of one expert."""
        return self.matrices[expert]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedStack({len(self.matrices)} x {self.matrices[0]!r})"

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that lie in memory."""
        return sum(matrix.nbytes for matrix in self.matrices)


def pack_stack(weight_ENK: Tensor, format: Format, arena: Arena | None = None) -> PackedStack:
    """As `pack`, for the matrices of experts."""
    return PackedStack(tuple(pack(weight_NK, format, arena=arena) for weight_NK in weight_ENK))


def packed_bytes(format: Format, shape: tuple[int, ...]) -> int:
    """Memory that an [N, K] matrix, or a stack [E, N, K] of them, will take."""
    if len(shape) == 3:
        return shape[0] * packed_bytes(format, shape[1:])
    n_outputs, n_inputs = (-(-shape[0] // PANEL) * PANEL, -(-shape[1] // format.together) * format.together)
    scale_bytes = {Format.INT8: 4 * n_outputs, Format.INT4: n_outputs * n_inputs // 16}.get(format, 0)
    return n_outputs * n_inputs * format.bits // 8 + scale_bytes


def _padded(weight_NK: Tensor, together: int) -> Iterator[Tensor]:
    """Some panels at a time."""
    for rows_NK in torch.split(weight_NK, ROWS_AT_ONCE):
        missing = (0, -rows_NK.shape[1] % together, 0, -rows_NK.shape[0] % PANEL)
        yield F.pad(rows_NK, missing) if any(missing) else rows_NK


class _Dense:
    """[P, K / pair, 64, pair]. pair: inputs that one instruction takes for each output."""

    def __init__(self, pair: int) -> None:
        self.pair = pair

    def packed(self, weight_NK: Tensor) -> tuple[Tensor, Tensor | None]:
        panels = weight_NK.view(-1, PANEL, weight_NK.shape[1] // self.pair, self.pair)
        return panels.transpose(1, 2).contiguous(), None

    def rows(self, weight: PackedWeight, ids_T: Tensor) -> Tensor:
        return weight.data_packed[ids_T // PANEL, :, ids_T % PANEL].flatten(1)


class _Int8(_Dense):
    """As dense, of bytes."""

    def __init__(self) -> None:
        super().__init__(4)

    def packed(self, weight_NK: Tensor) -> tuple[Tensor, Tensor | None]:
        rounded_NK, scales_N = int8_rows(weight_NK)
        return super().packed(rounded_NK.add_(128).to(torch.uint8))[0], scales_N

    def rows(self, weight: PackedWeight, ids_T: Tensor) -> Tensor:
        assert weight.scales_N is not None
        return (super().rows(weight, ids_T).float() - 128) * weight.scales_N[ids_T].unsqueeze(1)


class _Int4:
    """[P, G, 1152]: 64 float16 scales, then by 8 inputs 64 times 4 bytes; a byte holds inputs i and i + 4 of the 8."""

    GROUP = INT4_GROUP
    SCALE_BYTES = 2 * PANEL

    def packed(self, weight_NK: Tensor) -> tuple[Tensor, Tensor | None]:
        rounded_NGI, scales_NG = int4_groups(weight_NK)
        stored = rounded_NGI.add_(8).to(torch.uint8)
        n_groups = stored.shape[1]
        first, second = stored.view(-1, PANEL, n_groups, 4, 2, 4).unbind(4)
        numbers = (first | second << 4).permute(0, 2, 3, 1, 4).reshape(-1, n_groups, PANEL * self.GROUP // 2)
        scales = scales_NG.view(-1, PANEL, n_groups).transpose(1, 2).contiguous().view(torch.uint8)
        return torch.cat((scales, numbers), dim=2), None

    def rows(self, weight: PackedWeight, ids_T: Tensor) -> Tensor:
        panels_PGB, lanes_T = weight.data_packed, ids_T % PANEL
        scales_PGL = panels_PGB[..., : self.SCALE_BYTES].view(torch.float16)
        numbers = panels_PGB[..., self.SCALE_BYTES :].reshape(*panels_PGB.shape[:2], 4, PANEL, 4)
        both = numbers[ids_T // PANEL, :, :, lanes_T]  # [T, G, 4, 4]
        values = torch.stack((both & 15, both >> 4), dim=3).flatten(2).float() - 8
        return (values * scales_PGL[ids_T // PANEL, :, lanes_T].float().unsqueeze(2)).flatten(1)


_LAYOUTS: dict[Format, _Dense | _Int4] = {
    Format.FLOAT32: _Dense(1),
    Format.BFLOAT16: _Dense(2),
    Format.INT8: _Int8(),
    Format.INT4: _Int4(),
}
