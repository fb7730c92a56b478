"""Qwen 2 and 2.5, dense: biases on queries, keys and values; the upper layers may have a window."""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    read_attention,
    read_dense,
    read_layer_types,
    read_model,
    read_window,
)
from penstock.models.spec import LayerSpec, ModelSpec

DEFAULT_WINDOW_TOKENS = 4096
DEFAULT_FULL_LAYERS = 28


def read_windows(config: ConfigFile) -> tuple[int | None, ...]:
    """By layer. `sliding_window` means nothing without `use_sliding_window`."""
    has_windows = config.flag("use_sliding_window", False)
    window_tokens = read_window(config, absent=DEFAULT_WINDOW_TOKENS) if has_windows else None
    first = config.integer("max_window_layers", default=DEFAULT_FULL_LAYERS, least=0)
    kinds = read_layer_types(config, lambda index: index >= first)
    return tuple(window_tokens if has_window else None for has_window in kinds)


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = replace(read_attention(config), has_qkv_bias=True, has_out_bias=False)
    mlp = read_dense(config)
    layers = tuple(LayerSpec(replace(attention, window_tokens=window), mlp) for window in read_windows(config))
    return read_model(config, architecture, layers)


FAMILY = Family(
    models="Qwen 1.5, 2, 2.5 and models distilled into them",
    read_config=read_config,
)
