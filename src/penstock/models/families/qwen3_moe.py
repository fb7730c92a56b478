"""Qwen3 with experts: some layers are dense, by `mlp_only_layers` and `decoder_sparse_step`."""

from __future__ import annotations

from penstock.core.errors import CorruptModel
from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, count_layers, read_dense, read_model
from penstock.models.families.qwen3 import read_qwen3_attention
from penstock.models.spec import ExpertsSpec, LayerSpec, ModelSpec


def read_experts(config: ConfigFile) -> ExpertsSpec:
    spec = ExpertsSpec(
        n_experts=config.integer("num_experts", "num_local_experts"),
        top_k=config.integer("num_experts_per_tok"),
        width=config.integer("moe_intermediate_size"),
        is_normalized=config.flag("norm_topk_prob", False),
    )
    if spec.top_k > spec.n_experts:
        raise CorruptModel(f"{config.source}: num_experts_per_tok {spec.top_k} of {spec.n_experts} experts")
    return spec


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    default_head_dim = config.integer("hidden_size") // config.integer("num_attention_heads")
    attention = read_qwen3_attention(config, default_head_dim)
    dense, experts = LayerSpec(attention, read_dense(config)), LayerSpec(attention, read_experts(config))
    dense_layers = config.integers("mlp_only_layers", ())
    step = config.integer("decoder_sparse_step", default=1)
    layers = tuple(
        dense if index in dense_layers or (index + 1) % step else experts for index in range(count_layers(config))
    )
    return read_model(config, architecture, layers)


FAMILY = Family(read_config=read_config)
