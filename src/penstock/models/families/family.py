"""What a family file provides, and the pieces of a configuration that most families share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.models.config_file import ConfigFile, short
from penstock.models.quantized_config import check_quantization
from penstock.models.rope_config import DEFAULT_THETA, read_rope
from penstock.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertsSpec,
    LayerSpec,
    LongRopeScaling,
    ModelSpec,
    NormSpec,
    QkNorm,
)
from penstock.ops.activation import Activation

MAX_LAYERS = 10_000  # a damaged configuration must not make us build billions of records
LAYER_TYPES = {"full_attention": False, "sliding_attention": True}
ACTIVATIONS = {activation.value: activation for activation in (Activation.SILU, Activation.GELU_TANH)}
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
    q_a: str = "model.layers.{layer}.self_attn.q_a_proj"
    q_a_norm: str = "model.layers.{layer}.self_attn.q_a_layernorm"
    q_b: str = "model.layers.{layer}.self_attn.q_b_proj"
    kv_a: str = "model.layers.{layer}.self_attn.kv_a_proj_with_mqa"
    kv_a_norm: str = "model.layers.{layer}.self_attn.kv_a_layernorm"
    kv_b: str = "model.layers.{layer}.self_attn.kv_b_proj"
    sinks: str = "model.layers.{layer}.self_attn.sinks"
    attention_out: str = "model.layers.{layer}.self_attn.o_proj"
    attention_post_norm: str = "model.layers.{layer}.post_attention_layernorm"  # where norms stand behind
    mlp_norm: str = "model.layers.{layer}.post_attention_layernorm"
    gate_up: tuple[str, ...] = ("model.layers.{layer}.mlp.gate_proj", "model.layers.{layer}.mlp.up_proj")
    down: str = "model.layers.{layer}.mlp.down_proj"
    mlp_post_norm: str = "model.layers.{layer}.post_feedforward_layernorm"
    router: str = "model.layers.{layer}.mlp.gate"
    expert_gate_up: tuple[str, ...] = (
        "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
        "model.layers.{layer}.mlp.experts.{expert}.up_proj",
    )
    expert_down: str = "model.layers.{layer}.mlp.experts.{expert}.down_proj"
    shared_gate_up: tuple[str, ...] = (
        "model.layers.{layer}.mlp.shared_expert.gate_proj",
        "model.layers.{layer}.mlp.shared_expert.up_proj",
    )
    shared_down: str = "model.layers.{layer}.mlp.shared_expert.down_proj"
    shared_gate: str = "model.layers.{layer}.mlp.shared_expert_gate"
    stacked_gate_up: str | None = None  # one transposed tensor for all experts, instead of one of each
    stacked_down: str | None = None
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """read_config: a configuration and its architecture's name -> spec.

    models, limits: for docs/models.md, the published models that it reads, and what it refuses.
    """

    models: str
    limits: str = "none known"
    read_config: Callable[[ConfigFile, str], ModelSpec]
    names: WeightNames = field(default_factory=WeightNames)


def read_attention(
    config: ConfigFile,
    *,
    default_head_dim: int | None = None,
    default_theta: float = DEFAULT_THETA,
    has_partial_rope: bool = False,
    qk_norm: QkNorm | None = None,
) -> AttentionSpec:
    """Grouped-query attention with rope and optional biases. default_head_dim None: the hidden size over the heads."""
    q_heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=q_heads)
    if q_heads % kv_heads:
        raise CorruptModel(
            f"{config.source}: num_attention_heads {q_heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    head_dim = config.integer("head_dim", default=default_head_dim or config.integer("hidden_size") // q_heads)
    has_bias = config.flag("attention_bias", False)
    return AttentionSpec(
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=read_rope(config, head_dim, default_theta, has_partial_rope),
        qk_norm=qk_norm,
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
    )


def read_window(config: ConfigFile, *, absent: int | None) -> int | None:
    """`sliding_window`; null means no window, and `absent` is what the absence of the key means."""
    if config.is_null("sliding_window"):
        return None
    found: int | None = config.integer("sliding_window", default=absent)
    return found


def read_cap(config: ConfigFile, key: str, *, absent: float | None) -> float | None:
    """A soft cap; null means none, and `absent` is what the absence of the key means."""
    if config.is_null(key):
        return None
    found: float | None = config.number(key, absent)
    return found


def read_layer_types(config: ConfigFile, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """For each layer, whether it has a window: `layer_types`, or the family's rule where that is absent."""
    listed = config.values.get("layer_types")
    n_layers = count_layers(config)
    if listed is None:
        return tuple(default(index) for index in range(n_layers))
    if not isinstance(listed, list) or len(listed) != n_layers:
        raise CorruptModel(f"{config.source}: layer_types is {short(listed)}, expected a list of {n_layers} names")
    for kind in listed:
        if not isinstance(kind, str) or kind not in LAYER_TYPES:
            raise UnsupportedModel(
                f"{config.source}: layer_types has {short(kind)}; supported: {', '.join(sorted(LAYER_TYPES))}"
            )
    return tuple(LAYER_TYPES[kind] for kind in listed)


def read_dense(config: ConfigFile, width_key: str = "intermediate_size") -> DenseSpec:
    return DenseSpec(
        width=config.integer(width_key), has_bias=config.flag("mlp_bias", False), activation=read_activation(config)
    )


def read_activation(config: ConfigFile) -> Activation:
    """`hidden_activation` (Gemma) or `hidden_act`; silu if there is neither."""
    name = config.text("hidden_activation", "hidden_act", default="silu")
    if name not in ACTIVATIONS:
        raise UnsupportedModel(f"{config.source}: hidden_act is {short(name)}; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_experts(config: ConfigFile, **differing: Any) -> ExpertsSpec:
    """Experts of the most common keys. differing: fields that a family reads from elsewhere, or fixes."""
    fields: dict[str, Any] = {
        "n_experts": differing.pop("n_experts", None) or config.integer("num_experts", "num_local_experts"),
        "top_k": config.integer("num_experts_per_tok"),
        "width": differing.pop("width", None) or config.integer("moe_intermediate_size"),
        "activation": read_activation(config),
    }
    spec = ExpertsSpec(**fields | differing)
    if spec.top_k > spec.n_experts:
        raise CorruptModel(f"{config.source}: num_experts_per_tok {spec.top_k} of {spec.n_experts} experts")
    return spec


def count_layers(config: ConfigFile) -> int:
    found: int = config.integer("num_hidden_layers", most=MAX_LAYERS)
    return found


def read_model(
    config: ConfigFile, architecture: str, layers: tuple[LayerSpec, ...], *, is_tied_by_default: bool = False
) -> ModelSpec:
    """What is common to all decoders, around the layers."""
    check_quantization(config)
    return ModelSpec(
        architecture=architecture,
        hidden_size=config.integer("hidden_size"),
        vocab_size=config.integer("vocab_size"),
        layers=layers,
        norm=NormSpec(eps=config.number("rms_norm_eps")),
        is_tied=config.flag("tie_word_embeddings", is_tied_by_default),
        max_position_tokens=min(config.integer("max_position_embeddings"), *_longest_tokens(layers)),
        stop_token_ids=frozenset(config.integers("eos_token_id", ())),
        dtype=read_dtype(config),
    )


def _longest_tokens(layers: tuple[LayerSpec, ...]) -> Iterator[int]:
    """What the positions of each layer allow."""
    for layer in layers:
        rope = layer.attention.rope
        yield rope.scaling.original_max_tokens if rope and isinstance(rope.scaling, LongRopeScaling) else 2**31


def read_dtype(config: ConfigFile) -> str:
    """`dtype` (transformers 5) or `torch_dtype`; float32 if the configuration names none."""
    name: str = config.text("dtype", "torch_dtype", default="float32").removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModel(f"{config.source}: dtype is {short(name)}; supported: {', '.join(DTYPES)}")
    return name
