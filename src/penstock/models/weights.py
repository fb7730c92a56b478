"""From a Hugging Face folder or a GGUF file to a decoder.

Each parameter is resident once. A tensor that lies in the file as it is needed stays a view of the memory map; one
that is fused, converted or sent to a device is copied part by part into its place, and the pages it came from are
given back. No code of a checkpoint ever runs: configurations are data, weights are safetensors or GGUF.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from penstock.core.errors import UnknownName
from penstock.formats.gguf import GgufFile
from penstock.models.checkpoint import Checkpoint
from penstock.models.decoder import Decoder
from penstock.models.families.family import WeightNames
from penstock.models.gguf import config as gguf
from penstock.models.gguf.tensors import GgufTensors
from penstock.models.packing import Packer, Packing, load_fp8, packing_of, parameter_bytes
from penstock.models.parameters import Parameter, parameters_of
from penstock.models.peers import Peers
from penstock.models.read_spec import is_gguf, read_folder, read_gguf
from penstock.models.sharding import part_of_rank, rank_parameters, spec_of_rank
from penstock.models.spec import ALONE, ModelSpec, Shard
from penstock.ops.weight_format import Format

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOAD_FORMATS = ("auto", "dummy")
DUMMY_STD = 0.02  # what the models of the table are initialized with
DUMMY_SEED = 0
Tune = Callable[[Mapping[str, Tensor], ModelSpec], Mapping[str, Tensor]]


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    load_format: str = "auto",
    quantize: str = "none",
    is_packed: bool = False,
    spec: ModelSpec | None = None,
    tune: Tune | None = None,
    peers: Peers | None = None,
) -> Decoder:
    """Read a model and its weights.

    Args:
        path: a folder with config.json and safetensors, or a GGUF file.
        dtype: "float32", "bfloat16", "float16", or "auto" for that of the configuration.
        load_format: "auto" reads the weights; "dummy" makes seeded random ones and needs config.json only.
        quantize: "fp8", "int8" or "int4" rounds the matrices of every layer while they load, and but for fp8 the
            embedding and the head.
        is_packed: lay float matrices out for the C++ kernels of the CPU, too.
        spec: None, or that of `read_model_spec` with changes that leave its parameters as they are.
        tune: what is done to the tensors before the decoder is made of them.
        peers: the ranks that run this model together with this one, which holds its share; None: it runs all of it.
    Raises: ModelNotFound, CorruptModel, UnsupportedModel; UnknownName for a dtype, load format or quantization.
    """
    if load_format not in LOAD_FORMATS:
        raise UnknownName("load format", load_format, LOAD_FORMATS)
    source = _Source.read(Path(path))
    spec = source.spec if spec is None else spec
    chosen_dtype, chosen_device = resolve_dtype(spec, dtype), torch.device(device)
    packing = packing_of(chosen_dtype, chosen_device, quantize, is_packed)
    shard = ALONE if peers is None else peers.shard
    gib = weight_bytes(spec, chosen_dtype, quantize, chosen_device.type, shard) / 2**30
    kind = chosen_dtype if quantize == "none" else f"{quantize} ({chosen_dtype})"
    log.info("%s: %s, %.2f GiB of %s weights on %s", path, spec.architecture, gib, kind, chosen_device)
    if load_format == "dummy":
        tensors = make_dummy(spec, chosen_dtype, chosen_device, packing, shard)
    else:
        tensors = load_tensors(source.open(), spec, source.names, chosen_dtype, chosen_device, packing, shard)
    own = spec_of_rank(spec, shard)
    return Decoder(own, tensors if tune is None else tune(tensors, own), peers)


def weight_bytes(
    spec: ModelSpec,
    dtype: str | torch.dtype = "auto",
    quantize: str = "none",
    device_type: str = "cpu",
    shard: Shard = ALONE,
) -> int:
    """Memory that the weights take on a type of device, those of one rank, known before any of it is taken.

    spec: of the whole model.
    """
    chosen_dtype, parameters = resolve_dtype(spec, dtype), rank_parameters(spec, WeightNames(), shard)
    return sum(parameter_bytes(parameter, chosen_dtype, quantize, device_type) for parameter in parameters)


def resolve_dtype(spec: ModelSpec, dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    name = spec.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise UnknownName("dtype", name, ("auto", *DTYPES))
    return DTYPES[name]


def load_tensors(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    names: WeightNames,
    dtype: torch.dtype,
    device: torch.device,
    packing: Packing | None = None,
    shard: Shard = ALONE,
) -> dict[str, Tensor]:
    """Every parameter of the model, or of one rank, from the checkpoint, by our names. spec: of the whole model."""
    ignored = (*names.ignored, f"{names.head}.weight") if spec.is_tied else names.ignored
    checkpoint.check(parameters_of(spec, names), ignored)
    packer = Packer(packing)
    tensors = {}
    parameters = tuple(rank_parameters(spec, names, shard))
    for parameter in parameters:
        kept: Tensor | None = None
        if packing is not None and packing.format_of(parameter, dtype) is Format.FP8:
            kept = load_fp8(parameter, checkpoint, dtype, device)
        if kept is None:
            kept = packer(parameter, _load(parameter, checkpoint, dtype, device, packing is None))
        tensors[parameter.name] = kept
    if packing is None and any(checkpoint.is_fp8(part) for parameter in parameters for part in parameter.parts):
        log.info("weights stored in fp8 take twice their bytes as %s: --quantize fp8 keeps them as they are", dtype)
    return tensors


def make_dummy(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, packing: Packing | None = None, shard: Shard = ALONE
) -> dict[str, Tensor]:
    """Random weights that keep activations finite: norms scale by 1, the rest is normal.

    shard: each rank draws the whole model's and keeps its share, so that together they are the same model.
    """
    norm_fill = 0.0 if spec.norm.is_centered else 1.0
    generator = torch.Generator(device).manual_seed(DUMMY_SEED)
    tensors = {}
    packer = Packer(packing)
    for parameter in parameters_of(spec, WeightNames()):
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.name.endswith("_norm"):
            tensor.fill_(norm_fill)
        else:
            tensor.normal_(0.0, DUMMY_STD, generator=generator)
        tensor = part_of_rank(tensor, parameter, spec, shard)
        tensors[parameter.name] = packer(parameter, tensor)
    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A model that was described, and how to get at its tensors."""

    spec: ModelSpec
    names: WeightNames
    open: Callable[[], Checkpoint]

    @classmethod
    def read(cls, path: Path) -> _Source:
        if not is_gguf(path):
            spec, names = read_folder(path)
            return cls(spec=spec, names=names, open=lambda: Checkpoint.open(path))
        file = GgufFile(path)
        spec = read_gguf(file)
        tensors = GgufTensors(file, gguf.paired_heads(file, spec))
        return cls(spec=spec, names=gguf.NAMES, open=lambda: Checkpoint.of(tensors, "its metadata"))


def _load(
    parameter: Parameter, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, may_view: bool
) -> Tensor:
    """may_view: the file may stay in use. What is packed is copied instead, for a copy gives the file's pages back."""
    if may_view and device.type == "cpu" and len(parameter.parts) == 1:
        (only,) = parameter.parts
        is_whole = only.shape == parameter.shape and not only.take
        view = checkpoint.view(only, dtype) if is_whole and not only.is_transposed else None
        if view is not None:
            return view
    new = torch.empty if parameter.is_covered else torch.zeros
    tensor = new(parameter.shape, dtype=dtype, device=device)
    for part in parameter.parts:
        into = tensor[part.index]
        checkpoint.copy(part, into.transpose(-1, -2) if part.is_transposed else into)
    return tensor
