"""OLMoE: OLMo 2's norms on queries and keys, norms before attention and MLP, experts in every layer."""

from __future__ import annotations

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, count_layers, read_attention, read_experts, read_model
from penstock.models.spec import LayerSpec, ModelSpec, QkNorm


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    config.require("clip_qkv", None, default=None)
    attention = read_attention(config, qk_norm=QkNorm.PROJECTION)
    experts = read_experts(
        config, width=config.integer("intermediate_size"), is_normalized=config.flag("norm_topk_prob", False)
    )
    return read_model(config, architecture, (LayerSpec(attention, experts),) * count_layers(config))


FAMILY = Family(
    models="OLMoE",
    limits="no `clip_qkv`",
    read_config=read_config,
)
