"""The file that says which implementation of a linear layer serves how many rows, and who may believe it.

A file holds tables of many devices. One counts if it was measured on this device, with these kernels, for this dtype:
kernels are named by a hash of their sources and the libraries below them, so a new release measures anew. What does not
count is left in the file and said once in the log. `penstock profile kernels` writes it, a start reads it.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from penstock.core.errors import ConfigError
from penstock.models.families.family import WeightNames
from penstock.models.parameters import Parameter, parameters_of
from penstock.models.spec import ModelSpec
from penstock.ops import native
from penstock.ops.dispatch import Cuts
from penstock.ops.packed import DENSE_FORMATS, PackedWeight
from penstock.ops.tuned import names_on, tuned

log = logging.getLogger(__name__)

FILE_NAME = "kernel-table.json"
FORMAT_VERSION = 1
OPS = Path(native.__file__).parent
SOURCES = ("tuned.py", "entry_linear", "packed_linear", "cpp")  # what a linear layer may run
GATED, PLAIN = (".gate_up",), (".qkv", ".out", ".down")


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Of a weight matrix, and whether the activation of a gated MLP follows it: that is measured with it."""

    outputs: int
    inputs: int
    is_gated: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """Whom a table is true for. kernels: see `kernels_key`."""

    device: str
    kernels: str
    dtype: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A shape's choice; `implementations` are there for people who read the file."""

    outputs: int
    inputs: int
    is_gated: bool
    second_from: int | None
    third_from: int | None


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured for one key."""

    device: str
    kernels: str
    dtype: str
    implementations: tuple[str, str, str]
    shapes: list[Row]

    @property
    def key(self) -> Key:
        return Key(self.device, self.kernels, self.dtype)

    def cuts(self) -> dict[Shape, Cuts]:
        return {
            Shape(row.outputs, row.inputs, row.is_gated): Cuts(row.second_from, row.third_from) for row in self.shapes
        }


class File(msgspec.Struct, frozen=True, kw_only=True):
    penstock_kernel_table: int = FORMAT_VERSION
    tables: list[Table]


def default_path() -> Path:
    return native.user_cache_dir() / FILE_NAME


def key_of(device: torch.device, dtype: torch.dtype, is_native: bool) -> Key:
    return Key(device_key(device), kernels_key(device, is_native), str(dtype).removeprefix("torch."))


def device_key(device: torch.device) -> str:
    """A GPU's name; a processor's, with the threads that share its work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())


def kernels_key(device: torch.device, is_native: bool) -> str:
    """Names the code that was measured: its implementations, a hash of their sources, the libraries below."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = OPS / source
        for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
            if file.suffix in (".py", ".h", ".cpp"):
                digest.update(file.read_bytes())
    libraries = f"torch {torch.__version__}"
    if device.type == "cuda":
        libraries += f", triton {_version('triton')}"
    return f"{'/'.join(names_on(device, is_native))} {digest.hexdigest()[:12]}, {libraries}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def read_tables(path: Path) -> list[Table]:
    """Every table of a file. Raises ConfigError naming the file and what is wrong with it."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=File)
        for table in file.tables:
            table.cuts()
    except OSError as error:
        why = f"cannot read the kernel table {path}: {error.strerror}"
        raise ConfigError(f"{why}; `penstock profile kernels` writes one") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a kernel table: {error}; delete it, or start with --kernel-table none"
        ) from None
    if file.penstock_kernel_table != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has version {file.penstock_kernel_table}, this release reads {FORMAT_VERSION}; delete it and run "
            "`penstock profile kernels` again"
        )
    return file.tables


def write_cuts(path: Path, key: Key, implementations: tuple[str, str, str], cuts: Mapping[Shape, Cuts]) -> None:
    """Add shapes to a file, in the place of what it says of them; what else it holds stays."""
    tables = read_tables(path) if path.exists() else []
    merged = dict(cuts)
    for table in tables:
        if table.key == key:
            merged = {**table.cuts(), **merged}
    rows = [
        Row(
            outputs=shape.outputs,
            inputs=shape.inputs,
            is_gated=shape.is_gated,
            second_from=choice.second_from,
            third_from=choice.third_from,
        )
        for shape, choice in sorted(merged.items())
    ]
    ours = Table(device=key.device, kernels=key.kernels, dtype=key.dtype, implementations=implementations, shapes=rows)
    file = File(tables=[*(table for table in tables if table.key != key), ours])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")


def read_cuts(where: str, key: Key) -> dict[Shape, Cuts]:
    """The choices that hold here. where: a path, "none", or "auto": the user's file, if there is one.

    Raises ConfigError for a path that is named and cannot be read.
    """
    path = default_path() if where == "auto" else Path(where)
    if where == "none" or (where == "auto" and not path.exists()):
        return {}
    tables = read_tables(path)
    found = next((table for table in tables if table.key == key), None)
    others = len(tables) - (found is not None)
    if others:
        log.info("%s: %d tables of other devices, kernels or dtypes are ignored", path, others)
    if found is None:
        log.info("%s has no table for %s, %s, %s", path, key.device, key.kernels, key.dtype)
        return {}
    return found.cuts()


# --- a model's weights -------------------------------------------------------------------------------------------
def shape_of(name: str, shape: tuple[int, ...]) -> Shape | None:
    """What a parameter is to the table; None for one that no linear layer of ours multiplies by."""
    if len(shape) != 2:
        return None
    if name in ("embed", "head") or name.endswith(PLAIN):
        return Shape(*shape)
    return Shape(*shape, is_gated=True) if name.endswith(GATED) else None


def is_tunable(name: str, weight: Tensor, spec: ModelSpec) -> bool:
    """A float matrix, as it is or packed as it is; embeddings only where they are the head, too."""
    if name == "embed" and not spec.is_tied:
        return False
    if isinstance(weight, PackedWeight):
        return weight.format in DENSE_FORMATS.values()
    return type(weight) is Tensor and weight.is_floating_point()


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a table says of one model here. added_bytes: of matrices that stand in two forms because of it."""

    cuts: Mapping[Shape, Cuts]
    added_bytes: int

    @classmethod
    def read(cls, where: str, spec: ModelSpec, device: torch.device, dtype: torch.dtype, *, is_packed: bool) -> Tuning:
        """where: see `read_cuts`. is_packed: float matrices are laid out for the C++ kernels."""
        if where == "none":
            return cls({}, 0)
        cuts = read_cuts(where, key_of(device, dtype, is_packed))
        parameters = parameters_of(spec, WeightNames()) if cuts and is_packed else ()
        return cls(cuts, _added_bytes(parameters, spec, cuts, dtype.itemsize))

    def apply(self, tensors: Mapping[str, Tensor], spec: ModelSpec) -> Mapping[str, Tensor]:
        """Each matrix that the table knows, with its choice. Says in the log what it does not know."""
        if not self.cuts:
            return tensors
        made = dict(tensors)
        known, unknown = set(), set()
        for name, weight in tensors.items():
            shape = shape_of(name, tuple(weight.shape))
            if shape is None or not is_tunable(name, weight, spec):
                continue
            if shape in self.cuts:
                made[name] = tuned(weight, self.cuts[shape])
                known.add(shape)
            else:
                unknown.add(shape)
        if known:
            log.info("linear layers of %s go by the kernel table", _listed(known))
        if unknown:
            log.info("the kernel table does not know %s: `penstock profile kernels` measures them", _listed(unknown))
        return made


def _listed(shapes: set[Shape]) -> str:
    return ", ".join(f"{shape.outputs}x{shape.inputs}" for shape in sorted(shapes))


def _added_bytes(parameters: Iterable[Parameter], spec: ModelSpec, cuts: Mapping[Shape, Cuts], itemsize: int) -> int:
    """Of packed matrices that serve few rows and stand there plain for many."""
    total = 0
    for parameter in parameters:
        shape = shape_of(parameter.name, parameter.shape)
        choice = None if shape is None else cuts.get(shape)
        is_head = parameter.name != "embed" or spec.is_tied
        if choice is not None and is_head and choice.second_from is not None and choice.second_from > 1:
            total += parameter.elements * itemsize
    return total
