"""GPT-OSS: a learned sink beside the keys of every head, a window in every other layer, experts with biases.

The published weights are mxfp4 and refused; copies that were converted to bfloat16 are read.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    WeightNames,
    read_attention,
    read_experts,
    read_layer_types,
    read_model,
    read_window,
)
from penstock.models.spec import LayerSpec, ModelSpec
from penstock.ops.activation import SWIGLU_ALPHA, SWIGLU_LIMIT, Activation

DEFAULT_WINDOW_TOKENS = 128
DEFAULT_THETA = 150000.0
DEFAULT_HEAD_DIM = 64


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    config.require("swiglu_limit", SWIGLU_LIMIT, default=SWIGLU_LIMIT)
    config.require("swiglu_alpha", SWIGLU_ALPHA, default=SWIGLU_ALPHA)
    attention = read_attention(config, default_head_dim=DEFAULT_HEAD_DIM, default_theta=DEFAULT_THETA)
    has_bias = config.flag("attention_bias", True)
    attention = replace(attention, has_qkv_bias=has_bias, has_out_bias=has_bias, has_sinks=True)
    experts = read_experts(
        config,
        width=config.integer("intermediate_size"),
        is_normalized=True,
        has_bias=True,
        activation=Activation.CLAMPED_SWIGLU,
    )
    full = LayerSpec(attention, experts)
    window_tokens = read_window(config, absent=DEFAULT_WINDOW_TOKENS)
    windowed = replace(full, attention=replace(attention, window_tokens=window_tokens))
    kinds = read_layer_types(config, lambda index: index % 2 == 0)
    return read_model(config, architecture, tuple(windowed if has_window else full for has_window in kinds))


NAMES = WeightNames(
    router="model.layers.{layer}.mlp.router",
    stacked_gate_up="model.layers.{layer}.mlp.experts.gate_up_proj",
    stacked_down="model.layers.{layer}.mlp.experts.down_proj",
)
FAMILY = Family(
    models="GPT-OSS, converted to plain weights",
    limits="no mxfp4; the published clamp and gain only",
    read_config=read_config,
    names=NAMES,
)
