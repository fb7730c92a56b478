"""Checkpoints whose weights are stored in fp8: which are read, and what their numbers stand for.

A tensor `NAME.weight` in e4m3 has its scales beside it, in `NAME.weight_scale` or `NAME.weight_scale_inv`; a number
times its scale is the weight, for both names. Scales are one for the tensor, one for each row, or one for each block of
128 x 128 numbers. Scales for activations are left alone: those are rounded with scales of their own, or not at all.

Shape letters: N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from penstock.core.errors import CorruptModel
from penstock.models.quantized_config import BLOCK

SCALES = ("weight_scale", "weight_scale_inv")
IGNORED = (".input_scale", ".input_scale_ub", ".output_scale", ".k_scale", ".v_scale")  # of activations and KV caches
ELEMENTS_AT_ONCE = 1 << 22  # restored at a time: 16 MiB of float32


def scale_names(source: str) -> Iterator[str]:
    """What the scales of a weight may be called."""
    if source.endswith(".weight"):
        yield from (f"{source.removesuffix('weight')}{name}" for name in SCALES)


def check_scales(source: str, shape: tuple[int, ...], scale_shape: tuple[int, ...], where: str) -> None:
    """Raises CorruptModel for scales that are neither of a tensor, nor of its rows, nor of its blocks."""
    rows, columns = shape
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
    if scale_shape not in ((), (1,), (rows,), (rows, 1), blocks):
        raise CorruptModel(
            f"{where}: the scales of {source}, {rows}x{columns} in fp8, have shape {list(scale_shape)}; expected one "
            f"for all, for each row, or for each block of {BLOCK}x{BLOCK}, which is {list(blocks)}"
        )


def row_scales(scales: Tensor, n_rows: int) -> Tensor | None:
    """float32 [N]; None for scales of blocks."""
    if scales.numel() == 1:
        return scales.float().reshape(1).expand(n_rows)
    return scales.float().reshape(n_rows) if scales.numel() == n_rows and scales.shape[0] == n_rows else None


def restore(numbers_NK: Tensor, scales: Tensor, into_NK: Tensor) -> None:
    """Write the weights into a tensor of any float dtype, some rows at a time."""
    n_rows, n_columns = numbers_NK.shape
    by_row = row_scales(scales, n_rows)
    at_once = max(1, ELEMENTS_AT_ONCE // max(1, n_columns) // BLOCK) * BLOCK
    for start in range(0, n_rows, at_once):
        piece = slice(start, min(start + at_once, n_rows))
        wide_NK = numbers_NK[piece].float()
        if by_row is not None:
            into_NK[piece] = wide_NK * by_row[piece].unsqueeze(1)
            continue
        blocks = scales[start // BLOCK : -(-piece.stop // BLOCK)].float()
        spread = blocks.repeat_interleave(BLOCK, 0)[: len(wide_NK)].repeat_interleave(BLOCK, 1)[:, :n_columns]
        into_NK[piece] = wide_NK * spread
