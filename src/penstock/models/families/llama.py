"""Llama 2 and 3, and the many models that use its architecture name."""

from __future__ import annotations

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, count_layers, read_attention, read_dense, read_model
from penstock.models.spec import LayerSpec, ModelSpec


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    layer = LayerSpec(read_attention(config), read_dense(config))
    return read_model(config, architecture, (layer,) * count_layers(config))


FAMILY = Family(
    models="Llama 2, 3, 3.1, 3.2 (text), and models of its shape",
    read_config=read_config,
)
