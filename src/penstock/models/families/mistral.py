"""Mistral: Llama's layers, with a window over all of them in the first version."""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, count_layers, read_attention, read_dense, read_model, read_window
from penstock.models.spec import LayerSpec, ModelSpec

DEFAULT_WINDOW_TOKENS = 4096


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = replace(read_attention(config), window_tokens=read_window(config, absent=DEFAULT_WINDOW_TOKENS))
    layer = LayerSpec(attention, read_dense(config))
    return read_model(config, architecture, (layer,) * count_layers(config))


FAMILY = Family(
    models="Mistral 7B, Nemo, Small (text)",
    read_config=read_config,
)
