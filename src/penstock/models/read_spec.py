"""What a model is, from its folder or its GGUF file: no tensor is read, and no torch is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from penstock.core.errors import CorruptModel, ModelNotFound
from penstock.formats.gguf import GgufFile
from penstock.models.config_file import ConfigFile
from penstock.models.families import family_of
from penstock.models.families.family import WeightNames
from penstock.models.gguf import config as gguf
from penstock.models.spec import ExpertsSpec, ModelSpec

GGUF_SUFFIX = ".gguf"
MAX_EXPERTS = 1 << 17  # of all layers together; the largest models have 25,000
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def read_model_spec(path: str | Path) -> ModelSpec:
    """What the model is. Stop tokens are those of config.json and generation_config.json.

    Raises: ModelNotFound, CorruptModel, UnsupportedModel.
    """
    path = Path(path)
    return read_gguf(GgufFile(path)) if is_gguf(path) else read_folder(path)[0]


def is_gguf(path: Path) -> bool:
    """Raises ModelNotFound if it is no folder either."""
    if path.is_dir():
        return False
    if path.is_file() and path.suffix.lower() == GGUF_SUFFIX:
        return True
    raise ModelNotFound(f"{path} is no folder; a model is a folder with config.json and safetensors, or a .gguf file")


def read_folder(folder: Path) -> tuple[ModelSpec, WeightNames]:
    """With the names that its family gives to tensors."""
    config = ConfigFile.read(folder / "config.json")
    architecture, family = family_of(config)
    spec = family.read_config(config, architecture)
    generation_path = folder / "generation_config.json"
    if generation_path.exists():
        more = ConfigFile.read(generation_path).integers("eos_token_id", ())
        spec = replace(spec, stop_token_ids=spec.stop_token_ids | frozenset(more))
    _refuse_countless(spec, folder)
    return spec, family.names


def read_gguf(file: GgufFile) -> ModelSpec:
    spec = gguf.read_gguf_spec(file)
    _refuse_countless(spec, file.path)
    return spec


def _refuse_countless(spec: ModelSpec, path: Path) -> None:
    """A damaged configuration must not make us list billions of tensors before we miss the first."""
    n_experts = sum(layer.mlp.n_experts for layer in spec.layers if isinstance(layer.mlp, ExpertsSpec))
    if n_experts > MAX_EXPERTS:
        raise CorruptModel(f"{path}: its configuration asks for {n_experts} experts, more than {MAX_EXPERTS}")
