"""The tensors of a model, whichever file holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from penstock.core.errors import CorruptModel, ModelNotFound, UnsupportedModel
from penstock.models.config_file import ConfigFile
from penstock.models.parameters import Index, Parameter, Part
from penstock.models.safetensors_file import SafetensorsFile
from penstock.models.stored_fp8 import IGNORED, check_scales, restore, scale_names
from penstock.ops.rounding import FP8

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_NAME_BYTES = 255
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class TensorFile(Protocol):
    """One file of tensors, by name."""

    path: Path

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def view(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The tensor in the memory-mapped file; None if it does not lie there as it is needed."""

    def copy(self, name: str, into: Tensor, take: Index = ()) -> None:
        """Convert `tensor[take]` into `into`, to which it broadcasts, and give the pages that it came from back."""


class Checkpoint:
    """Tensor name -> the file that holds it. Only headers are read until a tensor is asked for.

    config_name: what says which tensors there must be.
    """

    def __init__(self, path: Path, files: Mapping[str, TensorFile], config_name: str = "config.json") -> None:
        self.path = path
        self._files = files
        self._config_name = config_name

    @classmethod
    def of(cls, file: TensorFile, config_name: str = "config.json") -> Checkpoint:
        """A model of one file."""
        return cls(file.path, dict.fromkeys(file.names(), file), config_name)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Raises ModelNotFound without safetensors, UnsupportedModel with only pickles, CorruptModel if damaged."""
        if (folder / SINGLE).is_file():
            return cls.of(SafetensorsFile(folder / SINGLE))
        if (folder / INDEX).is_file():
            return cls(folder, _read_index(folder))
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UnsupportedModel(
                f"{folder} holds its weights as {pickles[0]}, a pickle, which can run code when it is read. "
                f"Convert them to {SINGLE}, for instance with save_pretrained of transformers"
            )
        raise ModelNotFound(f"{folder} has no weights: looked for {SINGLE} and {INDEX}")

    def check(self, parameters: Iterable[Parameter], ignored: tuple[str, ...]) -> None:
        """Every part is there, in its shape, and nothing else is; before any memory is spent."""
        expected: set[str] = set()
        for parameter in parameters:
            for part in parameter.parts:
                expected.add(part.source)
                self._check_part(part)
                if self.is_fp8(part):
                    expected.add(self._scale_name(part))
        for name in sorted(self._files.keys() - expected):
            if not name.endswith((*ignored, *IGNORED)):
                raise CorruptModel(
                    f"{self._files[name].path}: unexpected tensor {name}; "
                    f"{self._config_name} describes a model without it"
                )

    def view(self, part: Part, dtype: torch.dtype) -> Tensor | None:
        """The tensor in the memory-mapped file; None if it does not lie there as it is needed."""
        return self._files[part.source].view(part.source, dtype)

    def copy(self, part: Part, into: Tensor) -> None:
        """Convert what the part takes into `into`, to which that broadcasts. Numbers in fp8 get their scales."""
        if not self.is_fp8(part):
            self._files[part.source].copy(part.source, into, part.take)
            return
        numbers_NK = torch.empty(part.shape, dtype=FP8, device=into.device)
        scales = self.copy_fp8(replace(part, take=()), numbers_NK)
        if not part.take:
            restore(numbers_NK, scales, into)
            return
        whole_NK = torch.empty(part.shape, dtype=into.dtype, device=into.device)  # scales are those of whole blocks
        restore(numbers_NK, scales, whole_NK)
        into.copy_(whole_NK[part.take])

    def is_fp8(self, part: Part) -> bool:
        """The tensor is stored in e4m3, with scales beside it."""
        return self._files[part.source].view(part.source, FP8) is not None

    def copy_fp8(self, part: Part, into: Tensor) -> Tensor:
        """Copy the stored numbers that the part takes, and return the scales of all; see `stored_fp8`."""
        self._files[part.source].copy(part.source, into, part.take)
        name = self._scale_name(part)
        scales = torch.empty(self._files[name].shape(name), dtype=torch.float32, device=into.device)
        self._files[name].copy(name, scales)
        return scales

    def _scale_name(self, part: Part) -> str:
        """Raises CorruptModel without scales, or for some that do not fit."""
        file = self._files[part.source]
        found = [name for name in scale_names(part.source) if name in self._files]
        if not found or len(part.shape) != 2:
            raise CorruptModel(
                f"{file.path}: tensor {part.source} is stored in fp8 without scales: looked for "
                f"{' and '.join(scale_names(part.source))} beside a matrix"
            )
        check_scales(part.source, part.shape, self._files[found[0]].shape(found[0]), str(file.path))
        return found[0]

    def _check_part(self, part: Part) -> None:
        if part.source not in self._files:
            raise CorruptModel(
                f"{self.path}: tensor {part.source}, of shape {list(part.shape)}, is in none of its files"
            )
        file = self._files[part.source]
        found = file.shape(part.source)
        if found != part.shape:
            raise CorruptModel(
                f"{file.path}: tensor {part.source} has shape {list(found)}, "
                f"{self._config_name} asks for {list(part.shape)}"
            )


def _read_index(folder: Path) -> dict[str, TensorFile]:
    index = ConfigFile.read(folder / INDEX)
    listed = index.section("weight_map")
    if listed is None:
        raise CorruptModel(f"{index.source}: the key weight_map is missing")
    files: dict[str, SafetensorsFile] = {}
    tensors: dict[str, TensorFile] = {}
    for name in listed.values:
        file_name = listed.text(name)
        if file_name not in files:
            files[file_name] = _open_shard(folder, file_name)
        if name not in files[file_name].names():
            raise CorruptModel(f"{folder / file_name}: tensor {name} is not in it, but {INDEX} says so")
        tensors[name] = files[file_name]
    return tensors


def _open_shard(folder: Path, file_name: str) -> SafetensorsFile:
    if (
        Path(file_name).name != file_name or not file_name.isprintable() or len(file_name.encode()) > MAX_NAME_BYTES
    ):  # an index must not lead us out of the folder
        raise CorruptModel(f"{folder / INDEX}: {file_name!r} is no plain file name")
    if not (folder / file_name).is_file():
        raise CorruptModel(f"{folder}: {INDEX} names {file_name}, which is missing. Download it again")
    return SafetensorsFile(folder / file_name)
