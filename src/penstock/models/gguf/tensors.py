"""The tensors of a GGUF file as a checkpoint: experts one by one, rows in our order, dequantized a piece at a time."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.core.errors import CorruptModel
from penstock.formats.gguf import GgufFile, TensorRecord
from penstock.models.gguf.dequantize import Bytes, Floats, dequantize
from penstock.models.parameters import Index

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PIECE_ELEMENTS = 1 << 22  # dequantized at a time, 16 MiB of float32: a whole matrix would be resident twice
EXPERTS = "_exps.weight"
MAX_EXPERTS = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """heads: those whose rows are interleaved in the file; 0 if they lie as ours."""

    type: str
    shape: tuple[int, ...]
    start: int
    stop: int
    block_bytes: int
    heads: int


class GgufTensors:
    """Tensors by the names of the file; `blk.0.ffn_up_exps.weight` counts as one tensor per expert.

    paired_heads: ending of a name -> heads whose rows llama.cpp keeps as pairs (2i, 2i + 1) that rotate together,
    where ours are (i, i + half).
    """

    def __init__(self, file: GgufFile, paired_heads: Mapping[str, int]) -> None:
        self.path = file.path
        self._map = file.map
        self._entries = {
            name: entry
            for listed, record in file.tensors.items()
            for name, entry in _split(listed, record, paired_heads)
        }

    def names(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def view(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The tensor in the memory-mapped file; None if it does not lie there as it is needed."""
        entry = self._entries[name]
        if PLAIN.get(entry.type) != dtype or entry.heads or entry.start % dtype.itemsize:
            return None
        count = math.prod(entry.shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=entry.start).view(entry.shape)

    def copy(self, name: str, into: Tensor, take: Index = ()) -> None:
        """Dequantize `tensor[take]` into `into`, to which it broadcasts, and give the pages that it came from back."""
        entry = self._entries[name]
        data = numpy.frombuffer(self._map, numpy.uint8, entry.stop - entry.start, entry.start)
        if len(entry.shape) == 1:
            floats = _floats(entry, data)
            into.copy_(torch.from_numpy(floats[_order(len(floats), entry.heads)] if entry.heads else floats)[take])
        else:
            self._copy_rows(entry, data, into, take)
        self._forget(entry)

    def _copy_rows(self, entry: _Entry, data: Bytes, into: Tensor, take: Index) -> None:
        rows = data.reshape(math.prod(entry.shape[:-1]), -1)
        if entry.heads:
            rows = rows[_order(len(rows), entry.heads)]
        some_rows, columns = take or (slice(None), slice(None))
        rows = rows[some_rows]
        step = max(1, PIECE_ELEMENTS // entry.shape[-1])
        for first in range(0, len(rows), step):
            piece = _floats(entry, rows[first : first + step])
            into[first : first + step].copy_(torch.from_numpy(piece.reshape(-1, entry.shape[-1]))[:, columns])

    def _forget(self, entry: _Entry) -> None:
        first = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: neighbours may be views
        stop = entry.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > first and hasattr(mmap, "MADV_DONTNEED"):  # Linux and macOS have it, Windows does not
            self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)


def _floats(entry: _Entry, data: Bytes) -> Floats:
    return dequantize(entry.type, data.reshape(-1, entry.block_bytes)).ravel()


def _order(n_rows: int, heads: int) -> NDArray[numpy.int64]:
    """Of each of our rows, its place in the file."""
    return numpy.arange(n_rows).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _split(name: str, record: TensorRecord, paired_heads: Mapping[str, int]) -> Iterator[tuple[str, _Entry]]:
    heads = next((heads for ending, heads in paired_heads.items() if name.endswith(ending)), 0)
    n_parts = record.shape[0] if name.endswith(EXPERTS) and len(record.shape) == 3 else 0
    if n_parts > MAX_EXPERTS:
        raise CorruptModel(f"tensor {name} has {n_parts} experts, more than {MAX_EXPERTS}")
    part_bytes = (record.stop - record.start) // max(1, n_parts)
    for at in range(n_parts or 1):
        yield (
            f"{name.removesuffix('.weight')}.{at}.weight" if n_parts else name,
            _Entry(
                type=record.type,
                shape=record.shape[1:] if n_parts else record.shape,
                start=record.start + at * part_bytes,
                stop=record.start + (at + 1) * part_bytes,
                block_bytes=record.block_bytes,
                heads=heads,
            ),
        )
