"""Qwen3, dense: Qwen2's layers with norms on queries and keys instead of biases."""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, read_attention, read_dense, read_model
from penstock.models.families.qwen2 import read_windows
from penstock.models.spec import LayerSpec, ModelSpec, QkNorm


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = read_attention(config, default_head_dim=128, qk_norm=QkNorm.HEAD)
    mlp = read_dense(config)
    layers = tuple(LayerSpec(replace(attention, window_tokens=window), mlp) for window in read_windows(config))
    return read_model(config, architecture, layers)


FAMILY = Family(
    models="Qwen 3",
    read_config=read_config,
)
