"""Gemma: centered norms, scaled embeddings, GeGLU. What its successors share stands here, too."""

from __future__ import annotations

import math
from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, count_layers, read_attention, read_dense, read_model
from penstock.models.spec import LayerSpec, ModelSpec

DEFAULT_HEAD_DIM = 256


def read_gemma_model(config: ConfigFile, architecture: str, layers: tuple[LayerSpec, ...]) -> ModelSpec:
    spec = read_model(config, architecture, layers, is_tied_by_default=True)
    return replace(spec, norm=replace(spec.norm, is_centered=True), embed_scale=math.sqrt(spec.hidden_size))


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    config.require("use_bidirectional_attention", False, default=False)
    layer = LayerSpec(read_attention(config, default_head_dim=DEFAULT_HEAD_DIM), read_dense(config))
    return read_gemma_model(config, architecture, (layer,) * count_layers(config))


FAMILY = Family(
    models="Gemma 1",
    limits="no `use_bidirectional_attention`",
    read_config=read_config,
)
