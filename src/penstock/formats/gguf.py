"""Reading the header of a GGUF file: metadata and where the tensors lie. No byte of it is trusted.

The format: magic, version, two counts, the metadata (key, type, value), a record for each tensor (name, sizes, type,
offset), padding, the data. Little endian; strings and arrays begin with their length. Every count and length is held
against the bytes that are left before anything is made of it, so a header costs no more memory than its own size
times a small factor, and the limits below bound that too: a file may be sparse.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy

from penstock.core.errors import CorruptModel, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SPLIT_COUNT = "split.count"
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_ITEMS = 1 << 22  # of all arrays together; the largest vocabularies have 262,144 tokens and twice as many merges
MAX_NAME_BYTES = 1024
MAX_STRING_BYTES = 1 << 24
MAX_HEADER_BYTES = 1 << 28
MAX_DIMS = 4
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9
LEAST_STRING_BYTES = 8
# name, elements of a block, bytes of a block
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    6: ("Q5_0", 32, 22),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """One tensor; [start, stop) counts bytes from the start of the file. shape: slowest first, as torch has it."""

    type: str
    shape: tuple[int, ...]
    start: int
    stop: int
    block_elements: int
    block_bytes: int


class GgufFile:
    """Metadata and tensor records of one file, and the map that the data is read through."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptModel for anything that is not a whole file, UnsupportedModel for what nobody reads here."""
        self.path = path
        try:
            with path.open("rb") as file:
                size_bytes = file.seek(0, 2)
                if size_bytes < len(MAGIC):
                    raise CorruptModel(f"{path} is damaged: it has {size_bytes} bytes, too few for a GGUF file")
                # copy-on-write: torch wants memory that may be written, the file stays as it is
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None
        reader = _Reader(path, self.map, size_bytes)
        n_tensors, n_keys = reader.counts()
        self.metadata = reader.metadata(n_keys)
        self._refuse_split()
        self.tensors = reader.tensors(n_tensors, self.metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT))

    def _refuse_split(self) -> None:
        count = self.metadata.get(SPLIT_COUNT, 0)
        if isinstance(count, int) and count > 1:
            raise UnsupportedModel(
                f"{self.path} is one of {count} parts; supported: whole files. Join them with llama-gguf-split --merge"
            )


class _Reader:
    """A position in the header, and the bounds of everything that is read at it."""

    def __init__(self, path: Path, data: mmap.mmap, size_bytes: int) -> None:
        self._path = path
        self._data = data
        self._size_bytes = size_bytes
        self._at = 0
        self._items = 0

    def counts(self) -> tuple[int, int]:
        if self._take(4) != MAGIC:
            self._fail("it does not begin with GGUF")
        version = self._scalar("I")
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise UnsupportedModel(f"{self._path} is big-endian; supported: little-endian GGUF files")
            raise UnsupportedModel(f"{self._path} has GGUF version {version}; supported: 2 and 3")
        n_tensors, n_keys = self._scalar("Q"), self._scalar("Q")
        if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
            self._fail(f"its header claims {n_tensors} tensors and {n_keys} keys")
        return n_tensors, n_keys

    def metadata(self, n_keys: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._text(MAX_NAME_BYTES)
            if key in found:
                self._fail(f"the key {key} is there twice")
            kind = self._scalar("I")
            found[key] = self._array(key) if kind == ARRAY else self._value(kind, key)
        return found

    def tensors(self, n_tensors: int, alignment: Any) -> dict[str, TensorRecord]:
        if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self._fail(f"its alignment is {alignment!r:.40}, no power of two from 8 to {MAX_ALIGNMENT}")
        listed = [(self._text(MAX_NAME_BYTES), self._tensor()) for _ in range(n_tensors)]
        data_start = -(-self._at // alignment) * alignment
        found: dict[str, TensorRecord] = {}
        for name, (shape, kind, offset) in listed:
            if name in found:
                self._fail(f"tensor {name} is there twice")
            found[name] = self._record(name, shape, kind, offset, data_start, alignment)
        self._refuse_overlaps(found)
        return found

    def _tensor(self) -> tuple[tuple[int, ...], int, int]:
        n_dims = self._scalar("I")
        if n_dims > MAX_DIMS:
            self._fail(f"a tensor has {n_dims} dimensions, more than {MAX_DIMS}")
        sizes = tuple(self._scalar("Q") for _ in range(n_dims))
        return sizes[::-1], self._scalar("I"), self._scalar("Q")

    def _record(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, data_start: int, alignment: int
    ) -> TensorRecord:
        if kind not in TYPES:
            known = ", ".join(name for name, *_ in TYPES.values())
            raise UnsupportedModel(f"{self._path}: tensor {name} has GGML type {kind}; supported: {known}")
        type_name, block_elements, block_bytes = TYPES[kind]
        if not shape or 0 in shape or shape[-1] % block_elements:
            self._fail(f"tensor {name} of shape {list(shape)} has no rows of whole {type_name} blocks")
        start = data_start + offset
        stop = start + math.prod(shape) // block_elements * block_bytes
        if offset % alignment:
            self._fail(f"tensor {name} begins at byte {offset}, no multiple of the alignment {alignment}")
        if stop > self._size_bytes:
            self._fail(f"tensor {name} should end at byte {stop}, the file has {self._size_bytes}: it is truncated")
        return TensorRecord(
            type=type_name,
            shape=shape,
            start=start,
            stop=stop,
            block_elements=block_elements,
            block_bytes=block_bytes,
        )

    def _refuse_overlaps(self, records: dict[str, TensorRecord]) -> None:
        """So that what is loaded is never much larger than the file, whatever its header says."""
        end = 0
        for name, record in sorted(records.items(), key=lambda item: item[1].start):
            if record.start < end:
                self._fail(f"tensor {name} shares bytes with another")
            end = record.stop

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._text(MAX_STRING_BYTES)
        if kind not in SCALARS:
            self._fail(f"the key {key} has the unknown type {kind}")
        value = self._scalar(SCALARS[kind])
        if kind == BOOL:
            return bool(value)
        # the shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06, as config.json has it
        return float(str(numpy.float32(value))) if kind == FLOAT32 else value

    def _array(self, key: str) -> list[Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind not in SCALARS and kind != STRING:
            self._fail(f"the key {key} is an array of the unsupported type {kind}")
        item_bytes = LEAST_STRING_BYTES if kind == STRING else struct.calcsize(SCALARS[kind])
        self._items += count
        if count * item_bytes > self._size_bytes - self._at or self._items > MAX_ITEMS:
            self._fail(f"the key {key} claims {count} items")
        if kind == STRING:
            return [self._text(MAX_STRING_BYTES) for _ in range(count)]
        values = list(struct.unpack(f"<{count}{SCALARS[kind]}", self._take(count * item_bytes)))
        return [bool(value) for value in values] if kind == BOOL else values

    def _text(self, most_bytes: int) -> str:
        n_bytes = self._scalar("Q")
        if n_bytes > most_bytes:
            self._fail(f"a string at byte {self._at} claims {n_bytes} bytes, more than {most_bytes}")
        try:
            return self._take(n_bytes).decode()
        except UnicodeDecodeError:
            self._fail(f"the string that ends at byte {self._at} is no UTF-8")

    def _scalar(self, form: str) -> Any:
        return struct.unpack("<" + form, self._take(struct.calcsize(form)))[0]

    def _take(self, n_bytes: int) -> bytes:
        stop = self._at + n_bytes
        if stop > self._size_bytes:
            self._fail(f"its header goes on at byte {stop}, the file has {self._size_bytes}: it is truncated")
        if stop > MAX_HEADER_BYTES:
            self._fail(f"its header goes on at byte {stop}, more than {MAX_HEADER_BYTES}")
        taken = self._data[self._at : stop]
        self._at = stop
        return taken

    def _fail(self, what: str) -> NoReturn:
        raise CorruptModel(f"{self._path} is damaged: {what}. Download it again")
