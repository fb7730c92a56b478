"""Qwen3, dense: grouped-query attention with norms on queries and keys."""

from __future__ import annotations

from penstock.core.errors import UnsupportedModel
from penstock.models.config_file import ConfigFile, short
from penstock.models.families.family import Family, count_layers, read_attention, read_dense, read_model
from penstock.models.spec import AttentionSpec, LayerSpec, ModelSpec


def read_qwen3_attention(config: ConfigFile, default_head_dim: int) -> AttentionSpec:
    config.require("use_sliding_window", False, default=False)  # `sliding_window` alone means nothing
    kinds = config.values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise UnsupportedModel(f"{config.source}: layer_types is {short(kinds)}; supported: only 'full_attention'")
    return read_attention(config, head_dim=config.integer("head_dim", default=default_head_dim), has_qk_norm=True)


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    layer = LayerSpec(read_qwen3_attention(config, 128), read_dense(config))
    return read_model(config, architecture, (layer,) * count_layers(config))


FAMILY = Family(read_config=read_config)
