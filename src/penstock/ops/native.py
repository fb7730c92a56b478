"""The C++ kernels of the CPU: compiled once on the machine that runs them, called through a C interface.

`prepare` finds the library in the user's cache, or compiles it there with the machine's own compiler (about ten
seconds, once per version and kind of CPU); engines call it while they start. Nothing else compiles, and importing
compiles nothing. Without a compiler or without the instructions, every op keeps its file in torch and `state` says why.

The interface is C with ctypes: no header of Python or torch is needed to build, so one small command does it, and the
wheel stays pure. OpenMP's library is the one that torch has loaded: one pool of threads, no second one that spins.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
DTYPES = (torch.float32, torch.bfloat16)
COMPILE_LIMIT_S = 180

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Weight(ctypes.Structure):
    """`Weight` of linear.h: pointers to what a `PackedWeight` holds, which must outlive it."""

    _fields_ = (("data", _P), ("scale", _P), ("bias", _P), ("format", _I), ("n", _I), ("k", _I))


class Unified(ctypes.Structure):
    """`Unified` of attention.h."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("phi", "low", "high")),
        ("is_strict", ctypes.c_int32),
        ("counts", _P),
    )


class LayerWeights(ctypes.Structure):
    """`LayerWeights` of layer.h."""

    _fields_ = (
        *((name, _P) for name in ("input_norm", "mlp_norm", "qk_norm")),
        *((name, Weight) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _I) for name in ("hidden", "heads", "kv_heads", "dim", "window")),
        *((name, _F) for name in ("eps", "scale", "cap")),
        ("unified", _P),
    )


class LayerStep(ctypes.Structure):
    """`LayerStep` of layer.h."""

    _fields_ = (
        *((name, _P) for name in ("x", "change", "cosines", "sines", "kv", "slots", "tables", "segments")),
        *((name, _P) for name in ("total", "next_change")),
        *(("runs", _P), ("n_runs", _I), ("run_tables", _P), ("members", _P)),
        *((name, _I) for name in ("tokens", "pairs", "n_blocks", "block_tokens", "table_width", "n_segments")),
        ("threads", _I),
    )


SIGNATURES: dict[str, tuple[type, ...]] = {
    "linear": (_I, _P, _I, _I, _P, _P, _I),
    "layer": (_I, _P, _P),
    "attend": (_I, _P, _I, _P, _I, _P, _I, _P, _I, _I, _I, _I, _I, _F, _I, _F, _P, _I, _P, _P, _I, _P, _P, _P, _I),
    "rms_norm": (_I, _P, _I, _I, _I, _I, _I, _P, _I, _F, _P, _P, _P, _I),
    "gated_silu": (_I, _P, _I, _I, _P, _I),
    "rope": (_I, _P, _I, _I, _I, _I, _I, _P, _P, _I, _P, _I),
    "write_kv": (_P, _P, _I, _I, _I, _P, _I, _P, _I),
}


FUNCTIONS = {  # of each op, and of a whole layer
    "packed_linear": "linear",
    "layer": "layer",
    "paged_attention": "attend",
    "unified_attention": "attend",
    "shared_attention": "attend",
    "rms_norm": "rms_norm",
    "gated_silu": "gated_silu",
    "rope": "rope",
    "write_kv": "write_kv",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """Kernels for one kind of CPU. needed: its instructions, by the names of /proc/cpuinfo. ops: those it serves."""

    name: str
    source: str
    needed: tuple[str, ...]
    ops: frozenset[str]


AVX512 = Kind(
    "AVX-512",
    "kernels.cpp",
    ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    frozenset(FUNCTIONS),
)
AVX2 = Kind("AVX2", "kernels_avx2.cpp", ("avx2", "fma", "f16c"), frozenset({"packed_linear"}))
KINDS = (AVX512, AVX2)  # the best first


class Core:
    """The loaded library: a method for each function of its `kind`, whose sizes the caller has checked."""

    linear: Callable[..., None]
    layer: Callable[..., None]
    attend: Callable[..., None]
    rms_norm: Callable[..., None]
    gated_silu: Callable[..., None]
    rope: Callable[..., None]
    write_kv: Callable[..., None]

    def __init__(self, path: Path, kind: Kind) -> None:
        library = ctypes.CDLL(str(path))
        self.kind = kind
        for op in sorted(kind.ops):
            setattr(self, FUNCTIONS[op], _function(library, FUNCTIONS[op]))


def _function(library: ctypes.CDLL, name: str) -> Callable[..., None]:
    function = library[f"penstock_{name}"]
    function.argtypes, function.restype = SIGNATURES[name], None
    return function


@dataclass(frozen=True, slots=True)
class State:
    """What `prepare` came to; `core` is None where torch does the work, and `reason` says why."""

    core: Core | None
    reason: str


_state = State(None, "not prepared")  # code that a process has loaded, as its modules are: it is never taken back


def core(op: str) -> Core | None:
    """The library, if this process has prepared it and it serves the op."""
    return _state.core if _state.core is not None and op in _state.core.kind.ops else None


def state() -> State:
    return _state


def prepare(cache_dir: Path | None = None) -> State:
    """Load the library, compiled first where the cache has none. Never raises: without it, torch computes.

    cache_dir: where compiled libraries lie; None: the user's (XDG_CACHE_HOME/penstock).
    """
    global _state
    if _state.core is None:
        try:
            _state = State(*_load(cache_dir or user_cache_dir()))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home
            _state = State(None, f"torch computes: the C++ kernels could not be built ({error})")
        log.info("CPU kernels: %s", _state.reason)
    return _state


def user_cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "penstock"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the CPU can do; empty where the system does not say it in this way."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def _load(cache_dir: Path) -> tuple[Core | None, str]:
    flags = cpu_flags()
    kind = next((kind for kind in KINDS if flags.issuperset(kind.needed)), None)
    if kind is None:
        return None, f"torch computes: the C++ kernels need a CPU with {', '.join(KINDS[-1].needed)}"
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None, f"torch computes: no C++ compiler ({', '.join(COMPILERS)}) to build the C++ kernels"
    path = cache_dir / f"kernels-{_key(kind, compiler, flags)}.so"
    if path.exists():
        return Core(path, kind), f"C++ for {kind.name}, from {path}"
    start_s = time.perf_counter()
    _compile(kind, compiler, path)
    seconds = time.perf_counter() - start_s
    return Core(path, kind), f"C++ for {kind.name}, compiled in {seconds:.0f} s, kept in {path}"


def _key(kind: Kind, compiler: str, flags: frozenset[str]) -> str:
    """Names the result: by source, compiler, its flags and the CPU that -march=native stands for."""
    parts: Sequence[str] = (kind.name, compiler, *FLAGS, *sorted(flags))
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
    return hashlib.sha256(sources + "\n".join(parts).encode()).hexdigest()[:16]


def _compile(kind: Kind, compiler: str, path: Path) -> None:
    """Appears at `path` whole or not at all, also when several processes do this at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCES / kind.source), "-o", name],
            capture_output=True,
            text=True,
            timeout=COMPILE_LIMIT_S,
        )
        if done.returncode:
            raise OSError(f"{compiler} says {(done.stderr.strip() or 'nothing').splitlines()[0]}")
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def is_served(*tensors: Tensor) -> bool:
    """On the CPU, of one dtype that the kernels know, and each with its last dimension in one piece."""
    dtype = tensors[0].dtype
    return dtype in DTYPES and all(
        tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.stride(-1) == 1 for tensor in tensors
    )
