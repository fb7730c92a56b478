"""Reading a safetensors file through a memory map: no pickle, no copy, and no byte of it is trusted.

The format: 8 bytes with the length of a JSON header, the header (name -> dtype, shape, byte range), the data.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.models.parameters import Index

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
MAX_HEADER_BYTES = 1 << 25  # a fifth of a million tensors; parsed, a header may take twenty times its size
PREFIX_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of the file; [start, stop) counts bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """The tensors of one file, by name. Views keep the map alive; pages are read when touched."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptModel for anything that is not a whole safetensors file."""
        self.path = path
        try:
            with path.open("rb") as file:
                size_bytes = file.seek(0, 2)
                if size_bytes < PREFIX_BYTES:
                    raise self._corrupt(f"it has {size_bytes} bytes, too few for a safetensors file")
                # copy-on-write: torch wants memory that may be written, the file stays as it is
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None
        self._entries = self._read_header(size_bytes)

    def names(self) -> Iterable[str]:
        return self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def view(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The tensor in the memory-mapped file; None if it does not lie there as it is needed."""
        stored = self._dtype(name)
        return self._view(name) if stored == dtype else None

    def copy(self, name: str, into: Tensor, take: Index = ()) -> None:
        """Convert `tensor[take]` into `into`, to which it broadcasts, and give the pages that it came from back."""
        into.copy_(self._view(name)[take])
        self._forget(name)

    def _dtype(self, name: str) -> torch.dtype:
        """Raises UnsupportedModel for a dtype that no weight of ours has."""
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise UnsupportedModel(
                f"{self.path}: tensor {name} has dtype {entry.dtype}; supported: {', '.join(sorted(DTYPES))}"
            )
        return DTYPES[entry.dtype]

    def _view(self, name: str) -> Tensor:
        entry, dtype = self._entries[name], self._dtype(name)
        if entry.start % dtype.itemsize:  # a header of odd length; rare, so a copy will do
            data = bytearray(self._map[entry.start : entry.stop])
            return torch.frombuffer(data, dtype=dtype).view(entry.shape)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=entry.start).view(entry.shape)

    def _forget(self, name: str) -> None:
        """Give the pages of a tensor back after it was copied, so that it is not resident twice."""
        entry = self._entries[name]
        first = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: neighbours may be views
        stop = entry.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > first and hasattr(mmap, "MADV_DONTNEED"):  # Linux and macOS have it, Windows does not
            self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def _read_header(self, size_bytes: int) -> dict[str, Entry]:
        header_bytes = int.from_bytes(self._map[:PREFIX_BYTES], "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size_bytes - PREFIX_BYTES):
            raise self._corrupt(f"its header claims {header_bytes} bytes, the file has {size_bytes}")
        data_start = PREFIX_BYTES + header_bytes
        try:
            header = json.loads(self._map[PREFIX_BYTES:data_start])
        except (ValueError, RecursionError) as error:
            raise self._corrupt(f"its header is no valid JSON ({error})") from None
        if not isinstance(header, dict):
            raise self._corrupt("its header is no JSON object")
        header.pop("__metadata__", None)
        entries = {name: self._read_entry(name, record, data_start, size_bytes) for name, record in header.items()}
        self._refuse_overlaps(entries)
        return entries

    def _refuse_overlaps(self, entries: dict[str, Entry]) -> None:
        """So that what is loaded is never much larger than the file, whatever its header says."""
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start < end and entry.start < entry.stop:
                raise self._corrupt(f"tensor {name} shares bytes with another")
            end = max(end, entry.stop)

    def _read_entry(self, name: str, record: Any, data_start: int, size_bytes: int) -> Entry:
        match record:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
                pass
            case _:
                raise self._corrupt(f"the header's record of {name} is {str(record)[:80]}")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise self._corrupt(f"the shape of {name} is {str(shape)[:80]}")
        if not 0 <= start <= stop or data_start + stop > size_bytes:
            raise self._corrupt(
                f"tensor {name} should end at byte {data_start + stop}, the file has {size_bytes}: it is truncated"
            )
        if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
            raise self._corrupt(f"tensor {name} of shape {shape} and dtype {dtype} has {stop - start} bytes")
        return Entry(dtype=dtype, shape=tuple(shape), start=data_start + start, stop=data_start + stop)

    def _corrupt(self, what: str) -> CorruptModel:
        return CorruptModel(f"{self.path} is damaged: {what}. Download it again")
