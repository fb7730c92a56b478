"""Gemma 2: norms around attention and MLP, capped scores and logits, a window in every other layer."""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    WeightNames,
    read_attention,
    read_cap,
    read_dense,
    read_layer_types,
    read_window,
)
from penstock.models.families.gemma import DEFAULT_HEAD_DIM, read_gemma_model
from penstock.models.spec import AttentionSpec, LayerSpec, ModelSpec, NormPlace, QkNorm

DEFAULT_WINDOW_TOKENS = 4096
DEFAULT_SCORE_SCALAR = 256
DEFAULT_SCORE_CAP = 50.0
DEFAULT_LOGIT_CAP = 30.0


def read_gemma_attention(config: ConfigFile, qk_norm: QkNorm | None) -> AttentionSpec:
    """Of a layer without a window."""
    config.require("use_bidirectional_attention", False, default=False)
    attention = read_attention(config, default_head_dim=DEFAULT_HEAD_DIM, qk_norm=qk_norm)
    scalar = config.integer("query_pre_attn_scalar", default=DEFAULT_SCORE_SCALAR)
    return replace(attention, score_scale=scalar**-0.5)


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = replace(
        read_gemma_attention(config, qk_norm=None),
        soft_cap=read_cap(config, "attn_logit_softcapping", absent=DEFAULT_SCORE_CAP),
    )
    full = LayerSpec(attention, read_dense(config), NormPlace.AROUND)
    window_tokens = read_window(config, absent=DEFAULT_WINDOW_TOKENS)
    windowed = replace(full, attention=replace(attention, window_tokens=window_tokens))
    kinds = read_layer_types(config, lambda index: index % 2 == 0)
    layers = tuple(windowed if has_window else full for has_window in kinds)
    spec = read_gemma_model(config, architecture, layers)
    return replace(spec, logit_soft_cap=read_cap(config, "final_logit_softcapping", absent=DEFAULT_LOGIT_CAP))


NAMES = WeightNames(mlp_norm="model.layers.{layer}.pre_feedforward_layernorm")
FAMILY = Family(
    models="Gemma 2",
    limits="no `use_bidirectional_attention`",
    read_config=read_config,
    names=NAMES,
)
