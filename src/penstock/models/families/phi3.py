"""Phi-3, 3.5 and 4-mini: Llama's layers with fused projections; part of a head may stay unrotated."""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    WeightNames,
    count_layers,
    read_attention,
    read_dense,
    read_model,
    read_window,
)
from penstock.models.spec import LayerSpec, ModelSpec


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = read_attention(config, has_partial_rope=True)
    attention = replace(attention, window_tokens=read_window(config, absent=None))
    layer = LayerSpec(attention, read_dense(config))
    return read_model(config, architecture, (layer,) * count_layers(config))


NAMES = WeightNames(
    qkv=("model.layers.{layer}.self_attn.qkv_proj",), gate_up=("model.layers.{layer}.mlp.gate_up_proj",)
)
FAMILY = Family(
    models="Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini",
    limits="`longrope` up to the original context, 4096 tokens",
    read_config=read_config,
    names=NAMES,
)
