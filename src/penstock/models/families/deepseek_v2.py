"""DeepSeek V2 and V2-Lite: latent attention, shared experts beside the routed ones, the first layers dense."""

from __future__ import annotations

import math

from penstock.core.errors import CorruptModel
from penstock.models.config_file import ConfigFile
from penstock.models.families.family import (
    Family,
    WeightNames,
    count_layers,
    read_activation,
    read_dense,
    read_experts,
    read_model,
)
from penstock.models.rope_config import read_rope, yarn_mscale
from penstock.models.spec import DenseSpec, ExpertsSpec, LatentAttentionSpec, LayerSpec, ModelSpec, NormSpec

LATENT_NORM_EPS = 1e-6  # not that of the configuration
GROUPED = "group_limited_greedy"


def read_latent_attention(config: ConfigFile) -> LatentAttentionSpec:
    q_heads = config.integer("num_attention_heads")
    config.require("num_key_value_heads", q_heads, default=q_heads)
    nope_dim, rope_dim = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    return LatentAttentionSpec(
        q_heads=q_heads,
        q_rank=config.integer("q_lora_rank", default=None),
        kv_rank=config.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        v_dim=config.integer("v_head_dim"),
        rope=read_rope(config, rope_dim),
        scale=_yarn_scale(config) / math.sqrt(nope_dim + rope_dim),
        norm=NormSpec(eps=LATENT_NORM_EPS),
        has_bias=config.flag("attention_bias", False),
    )


def _yarn_scale(config: ConfigFile) -> float:
    """Here yarn scales scores by a setting of its own, on top of the rotation's factor."""
    section = config.section("rope_scaling", "rope_parameters")
    mscale_all = None if section is None else section.number("mscale_all_dim", None)
    if section is None or mscale_all is None or section.text("rope_type", "type", default="default") == "default":
        return 1.0
    return yarn_mscale(section.number("factor"), mscale_all) ** 2


def read_routed(config: ConfigFile) -> ExpertsSpec:
    config.require("scoring_func", "softmax", default="softmax")
    config.require("norm_topk_prob", False, default=False)
    method = config.text("topk_method", default="greedy")
    if method != GROUPED:
        config.require("topk_method", "greedy", default="greedy")
    width, n_shared = config.integer("moe_intermediate_size"), config.integer("n_shared_experts", default=None)
    shared = None if n_shared is None else DenseSpec(width=width * n_shared, activation=read_activation(config))
    spec = read_experts(
        config,
        n_experts=config.integer("n_routed_experts"),
        is_normalized=False,
        shared=shared,
        routed_scale=config.number("routed_scaling_factor", 1.0),
        n_groups=config.integer("n_group") if method == GROUPED else 1,
        top_groups=config.integer("topk_group") if method == GROUPED else 1,
    )
    if spec.n_experts % spec.n_groups or spec.top_groups > spec.n_groups:
        raise CorruptModel(
            f"{config.source}: topk_group {spec.top_groups} of n_group {spec.n_groups} do not fit "
            f"n_routed_experts {spec.n_experts}"
        )
    return spec


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    config.require("moe_layer_freq", 1, default=1)
    attention = read_latent_attention(config)
    dense, routed = LayerSpec(attention, read_dense(config)), LayerSpec(attention, read_routed(config))
    n_dense = config.integer("first_k_dense_replace", default=0, least=0)
    layers = tuple(dense if index < n_dense else routed for index in range(count_layers(config)))
    return read_model(config, architecture, layers)


NAMES = WeightNames(
    shared_gate_up=(
        "model.layers.{layer}.mlp.shared_experts.gate_proj",
        "model.layers.{layer}.mlp.shared_experts.up_proj",
    ),
    shared_down="model.layers.{layer}.mlp.shared_experts.down_proj",
)
FAMILY = Family(
    models="DeepSeek-V2, V2-Lite and V2.5",
    limits="latents are kept twice, as keys and as values; greedy and grouped softmax routing",
    read_config=read_config,
    names=NAMES,
)
