"""Qwen 1.5 and 2 with experts: beside the chosen ones a shared one, weighed by a gate of its own."""

from __future__ import annotations

from dataclasses import replace

from penstock.core.errors import UnsupportedModel
from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    count_layers,
    read_activation,
    read_attention,
    read_dense,
    read_experts,
    read_layer_types,
    read_model,
)
from penstock.models.spec import DenseSpec, LayerSpec, ModelSpec


def read_sparse_layers(config: ConfigFile) -> tuple[bool, ...]:
    """For each layer, whether it has experts. Windows are refused: the rule for them differs between versions."""
    config.require("use_sliding_window", False, default=False)
    if any(read_layer_types(config, lambda index: False)):
        raise UnsupportedModel(f"{config.source}: layer_types has 'sliding_attention'; supported: full_attention")
    dense = config.integers("mlp_only_layers", ())
    step = config.integer("decoder_sparse_step", default=1)
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(count_layers(config)))


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    has_bias = config.flag("qkv_bias", True)
    attention = replace(read_attention(config), has_qkv_bias=has_bias, has_out_bias=False)
    shared = DenseSpec(width=config.integer("shared_expert_intermediate_size"), activation=read_activation(config))
    mlp = read_experts(config, is_normalized=config.flag("norm_topk_prob", False), shared=shared, has_shared_gate=True)
    dense, experts = LayerSpec(attention, read_dense(config)), LayerSpec(attention, mlp)
    layers = tuple(experts if is_sparse else dense for is_sparse in read_sparse_layers(config))
    return read_model(config, architecture, layers)


FAMILY = Family(
    models="Qwen 1.5 and 2 with experts",
    limits="no windows",
    read_config=read_config,
)
