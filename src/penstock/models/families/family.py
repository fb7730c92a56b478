"""What a family file provides, and the pieces of a configuration that most families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.models.config_file import ConfigFile, short
from penstock.models.rope import read_rope
from penstock.models.spec import AttentionSpec, DenseSpec, LayerSpec, ModelSpec

MAX_LAYERS = 10_000  # a damaged configuration must not make us build billions of records
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """How a checkpoint calls its tensors; the defaults are those of Llama, which most families follow.

    `{layer}` and `{expert}` are filled in; ".weight" and ".bias" are appended. Several names are fused into one matrix
    in this order, so a family that stores them fused already gives one name. ignored: endings of tensors that a
    checkpoint may hold and nobody needs.
    """

    embed: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    input_norm: str = "model.layers.{layer}.input_layernorm"
    qkv: tuple[str, ...] = (
        "model.layers.{layer}.self_attn.q_proj",
        "model.layers.{layer}.self_attn.k_proj",
        "model.layers.{layer}.self_attn.v_proj",
    )
    q_norm: str = "model.layers.{layer}.self_attn.q_norm"
    k_norm: str = "model.layers.{layer}.self_attn.k_norm"
    attention_out: str = "model.layers.{layer}.self_attn.o_proj"
    mlp_norm: str = "model.layers.{layer}.post_attention_layernorm"
    gate_up: tuple[str, ...] = ("model.layers.{layer}.mlp.gate_proj", "model.layers.{layer}.mlp.up_proj")
    down: str = "model.layers.{layer}.mlp.down_proj"
    router: str = "model.layers.{layer}.mlp.gate"
    expert_gate_up: tuple[str, ...] = (
        "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
        "model.layers.{layer}.mlp.experts.{expert}.up_proj",
    )
    expert_down: str = "model.layers.{layer}.mlp.experts.{expert}.down_proj"
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """read_config: a configuration and its architecture's name -> spec."""

    read_config: Callable[[ConfigFile, str], ModelSpec]
    names: WeightNames = field(default_factory=WeightNames)


def read_attention(config: ConfigFile, *, head_dim: int, has_qk_norm: bool) -> AttentionSpec:
    """Grouped-query attention with rope and optional biases."""
    q_heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=q_heads)
    if q_heads % kv_heads:
        raise CorruptModel(
            f"{config.source}: num_attention_heads {q_heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    has_bias = config.flag("attention_bias", False)
    return AttentionSpec(
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=read_rope(config, head_dim),
        has_qk_norm=has_qk_norm,
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
    )


def read_dense(config: ConfigFile) -> DenseSpec:
    return DenseSpec(width=config.integer("intermediate_size"), has_bias=config.flag("mlp_bias", False))


def count_layers(config: ConfigFile) -> int:
    found: int = config.integer("num_hidden_layers", most=MAX_LAYERS)
    return found


def read_model(config: ConfigFile, architecture: str, layers: tuple[LayerSpec, ...]) -> ModelSpec:
    """What is common to all decoders, around the layers."""
    if config.section("quantization_config", "compression_config") is not None:
        raise UnsupportedModel(
            f"{config.source}: quantization_config asks for quantized weights; supported: {', '.join(DTYPES)}"
        )
    config.require("hidden_act", "silu", default="silu")
    return ModelSpec(
        architecture=architecture,
        hidden_size=config.integer("hidden_size"),
        vocab_size=config.integer("vocab_size"),
        layers=layers,
        norm_eps=config.number("rms_norm_eps"),
        is_tied=config.flag("tie_word_embeddings", False),
        max_position_tokens=config.integer("max_position_embeddings"),
        stop_token_ids=frozenset(config.integers("eos_token_id", ())),
        dtype=read_dtype(config),
    )


def read_dtype(config: ConfigFile) -> str:
    """`dtype` (transformers 5) or `torch_dtype`; float32 if the configuration names none."""
    name: str = config.text("dtype", "torch_dtype", default="float32").removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModel(f"{config.source}: dtype is {short(name)}; supported: {', '.join(DTYPES)}")
    return name
