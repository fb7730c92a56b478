"""Mixtral: Mistral's attention, experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    WeightNames,
    count_layers,
    read_attention,
    read_experts,
    read_model,
    read_window,
)
from penstock.models.spec import LayerSpec, ModelSpec

DEFAULT_THETA = 1e6


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = read_attention(config, default_theta=DEFAULT_THETA)
    attention = replace(attention, window_tokens=read_window(config, absent=None))
    experts = read_experts(config, width=config.integer("intermediate_size"), is_normalized=True)
    return read_model(config, architecture, (LayerSpec(attention, experts),) * count_layers(config))


NAMES = WeightNames(
    router="model.layers.{layer}.block_sparse_moe.gate",
    expert_gate_up=(
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3",
    ),
    expert_down="model.layers.{layer}.block_sparse_moe.experts.{expert}.w2",
)
FAMILY = Family(
    models="Mixtral 8x7B, 8x22B",
    read_config=read_config,
    names=NAMES,
)
