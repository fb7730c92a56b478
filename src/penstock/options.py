"""What an engine is started with: one typed record, filled from the command line, a TOML file, or Python."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from penstock.bench.shapes import SHAPES
from penstock.core.errors import ConfigError, ModelNotFound, UnknownName
from penstock.policy.presets import Policies, build_policies

BUNDLED = {"penstock-tiny": Path(__file__).parent / "bundled" / "penstock-tiny"}
DEFAULT_MODEL = "penstock-tiny"
GGUF_SUFFIX = ".gguf"
SOFTMAXES = ("exact", "unified")
EXECUTORS = ("torch", "simulated")


class EngineOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Options of one engine. Field names are the command line's, with underscores.

    model: a Hugging Face directory, a GGUF file, or the name of a bundled model. executor: torch, or simulated: steps
    take the time that is predicted for `device` (h200, ...), and answers are a stub; `model` may then be the name of
    a shape (llama-8b, ...), whose texts are those of the bundled model. dtype: auto (the checkpoint's), float32,
    bfloat16 or float16. quantize: none, fp8, int8 or int4 (weights, rounded while they load). native_kernels: C++
    kernels for the CPU, compiled on first use (some ten seconds, once). kernel_table: which implementation of a
    linear layer serves how many rows, measured by `penstock profile kernels`: auto (the user's file, if there is
    one), none, or a path. softmax: exact, or unified: decode steps sum against a maximum that `penstock profile
    softmax` found. kv_memory: size of the KV pool ("4GiB"; none: a share of what is free). host_kv_memory: size of
    the host tier, where preempted sequences are swapped to and evicted prefixes kept ("0": none). max_running: most
    sequences at a time. max_model_tokens: a shorter context than the model's. window_tokens: StreamingLLM, keep the
    first sink_tokens and the last window_tokens of every sequence, and let it go on without an end (max_model_tokens,
    by default 2**20); none: keep all. shared_prefix_attention: on, off, or auto (on where there is a kernel): a
    prefix that sequences share is read once for all of them where that is faster; off: what a sequence gets is the
    same beside any others, to the last bit, as far as kernels go. tensor_parallel: how many GPUs (on a CPU,
    processes) hold a share of the model each and run it together; `kv_memory` and `host_kv_memory` are those of all.
    compile_ahead: on a GPU, compile the Triton kernels that the model can meet while it starts, in processes beside
    it. trace: a file for a timeline of host and device, written when the engine closes. step_log: a file that gets a
    line per step, see `engine/step_log.py`. profile: a file of `penstock profile`, what policies know of the cost of
    steps; none: the one that ships for model and device, if any (for one device only). policy, slots, policy_options:
    see `penstock policies`.
    """

    model: str = DEFAULT_MODEL
    executor: str = "torch"
    dtype: str = "auto"
    device: str = "auto"
    load_format: str = "auto"
    quantize: str = "none"
    native_kernels: bool = False
    kernel_table: str = "auto"
    softmax: str = "exact"
    kv_memory: str | None = None
    host_kv_memory: str = "0"
    block_tokens: int = 16
    max_running: int = 64
    max_model_tokens: int | None = None
    window_tokens: int | None = None
    sink_tokens: int = 4
    tensor_parallel: int = 1
    max_queued_requests: int = 4096
    max_queued_tokens: int = 4_194_304
    prefix_caching: bool = True
    shared_prefix_attention: str = "auto"
    look_ahead: int = 1
    step_log: str | None = None
    trace: str | None = None
    compile_ahead: bool = False
    threads: int | None = None
    profile: str | None = None
    policy: str = "default"
    slots: dict[str, str] = {}
    policy_options: dict[str, dict[str, Any]] = {}

    def __post_init__(self) -> None:
        for name in ("block_tokens", "max_running", "tensor_parallel", "max_queued_requests", "max_queued_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}: give 1 or more")
        if self.executor not in EXECUTORS:
            raise UnknownName("executor", self.executor, EXECUTORS)
        if self.executor == "simulated" and self.tensor_parallel > 1:
            raise ConfigError(
                f"tensor_parallel is {self.tensor_parallel}: simulated engines have one device; leave it out"
            )
        if self.softmax not in SOFTMAXES:
            raise UnknownName("softmax", self.softmax, SOFTMAXES)
        if not 0 <= self.look_ahead <= 4:
            raise ConfigError(f"look_ahead is {self.look_ahead}: give 0 to 4 steps")

    @property
    def profile_path(self) -> Path | None:
        return None if self.profile is None else Path(self.profile).expanduser()

    def build_policies(self) -> Policies:
        return build_policies(self.policy, self.slots, self.policy_options)

    @property
    def is_shape(self) -> bool:
        """The model is known by its shape only: nothing of it lies on a disk."""
        return self.executor == "simulated" and self.model in SHAPES

    @property
    def model_path(self) -> Path:
        """The model's directory, or its GGUF file. Raises ModelNotFound."""
        if self.model in BUNDLED or self.is_shape:
            return BUNDLED[DEFAULT_MODEL if self.is_shape else self.model]
        path = Path(self.model).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix.lower() == GGUF_SUFFIX):
            return path
        raise ModelNotFound(
            f"no model at {self.model!r}: it is neither a directory, nor a {GGUF_SUFFIX} file, nor a bundled model "
            f"({', '.join(BUNDLED)}); give the path of a Hugging Face directory with config.json, or of a GGUF file"
        )

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        if self.model in BUNDLED or self.is_shape:
            return self.model
        path = self.model_path.resolve()
        return path.stem if path.is_file() else path.name


def read_config(path: Path) -> dict[str, Any]:
    """The tables of a TOML file: keys of `EngineOptions`, and `[order]`, `[admit]`, ... with `name` and options.

    Raises ConfigError naming the file and what is wrong.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as missing:
        raise ConfigError(f"cannot read the configuration {path}: {missing.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path} is not valid TOML: {wrong}") from None
    return raw


def make_options(values: Mapping[str, Any]) -> EngineOptions:
    """Options from plain values, as a TOML file or keyword arguments give them. Raises ConfigError or UnknownName."""
    known = EngineOptions.__struct_fields__
    for name in values:
        if name not in known:
            raise UnknownName("option", name, known)
    try:
        return msgspec.convert(dict(values), EngineOptions)
    except msgspec.ValidationError as wrong:
        raise ConfigError(f"wrong option: {wrong}") from None
