"""Qwen3 with experts: some layers are dense, by `mlp_only_layers` and `decoder_sparse_step`."""

from __future__ import annotations

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, read_attention, read_dense, read_experts, read_model
from penstock.models.families.qwen2_moe import read_sparse_layers
from penstock.models.spec import LayerSpec, ModelSpec, QkNorm


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = read_attention(config, qk_norm=QkNorm.HEAD)
    dense = LayerSpec(attention, read_dense(config))
    experts = LayerSpec(attention, read_experts(config, is_normalized=config.flag("norm_topk_prob", False)))
    layers = tuple(experts if is_sparse else dense for is_sparse in read_sparse_layers(config))
    return read_model(config, architecture, layers)


FAMILY = Family(
    models="Qwen 3 with experts",
    limits="no windows",
    read_config=read_config,
)
