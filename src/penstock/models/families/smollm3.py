"""SmolLM3: Llama's layers, every fourth of them without positions."""

from __future__ import annotations

from dataclasses import replace

from penstock.core.errors import CorruptModel
from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    count_layers,
    read_attention,
    read_dense,
    read_layer_types,
    read_model,
    read_window,
)
from penstock.models.spec import LayerSpec, ModelSpec

DEFAULT_THETA = 2e6
DEFAULT_INTERVAL = 4


def read_rotated_layers(config: ConfigFile) -> tuple[bool, ...]:
    """For each layer, whether it has positions: `no_rope_layers` is 1 where it has."""
    n_layers = count_layers(config)
    listed = config.integers("no_rope_layers", None)
    if listed is None:
        interval = config.integer("no_rope_layer_interval", default=DEFAULT_INTERVAL)
        return tuple((index + 1) % interval > 0 for index in range(n_layers))
    if len(listed) < n_layers:
        raise CorruptModel(f"{config.source}: no_rope_layers has {len(listed)} entries for {n_layers} layers")
    return tuple(bool(entry) for entry in listed[:n_layers])


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention, mlp = read_attention(config, default_theta=DEFAULT_THETA), read_dense(config)
    window_tokens = read_window(config, absent=None) if config.flag("use_sliding_window", False) else None
    rotated = read_rotated_layers(config)
    windowed = read_layer_types(config, lambda index: not rotated[index])
    attentions = (
        replace(
            attention,
            rope=attention.rope if is_rotated else None,
            window_tokens=window_tokens if has_window else None,
        )
        for is_rotated, has_window in zip(rotated, windowed, strict=True)
    )
    layers = tuple(LayerSpec(attention, mlp) for attention in attentions)
    return read_model(config, architecture, layers, is_tied_by_default=True)


FAMILY = Family(
    models="SmolLM3",
    read_config=read_config,
)
