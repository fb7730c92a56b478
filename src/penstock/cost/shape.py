"""What a model asks of a device per token, from its config.json alone: no weight and no tensor is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.core.errors import CorruptModel

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder of equal layers with gated MLPs, or experts.

    dense_weights: parameters that every token of a step reads, head included and embedding not. expert_weights: of all
    experts of all layers; a token reads `top_k` of `n_experts`. active_weights: parameters of the layers that one token
    is multiplied with.
    """

    name: str
    n_layers: int
    hidden_size: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_tokens: int
    item_bytes: int
    is_tied: bool
    dense_weights: int
    expert_weights: int
    active_weights: int
    n_experts: int
    top_k: int

    @property
    def weight_bytes(self) -> int:
        """Of all parameters in memory."""
        embedding = 0 if self.is_tied else self.vocab_size * self.hidden_size
        return self.item_bytes * (self.dense_weights + self.expert_weights + embedding)

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.n_layers * self.kv_heads * self.head_dim * self.item_bytes

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    def read_bytes(self, tokens: int) -> float:
        """Weights that a step of so many tokens reads, if they choose their experts evenly."""
        untouched_frac = (1 - self.top_k / self.n_experts) ** tokens if self.n_experts else 0.0
        return self.item_bytes * (self.dense_weights + self.expert_weights * (1 - untouched_frac))


def shape_of(name: str, config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises CorruptModel where a number is missing or wrong."""

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            if value is not None:
                raise CorruptModel(f"{name}: {key} is {value!r} in the configuration; a positive number belongs there")
        if default is None:
            raise CorruptModel(f"{name}: the configuration has no {keys[0]}")
        return default

    layers, hidden, q_heads = number("num_hidden_layers"), number("hidden_size"), number("num_attention_heads")
    kv_heads = number("num_key_value_heads", default=q_heads)
    head_dim = number("head_dim", default=hidden // q_heads)
    vocab, width = number("vocab_size"), number("intermediate_size")
    n_experts = number("num_experts", "num_local_experts", "n_routed_experts", default=1)
    n_experts = 0 if n_experts == 1 else n_experts
    top_k = number("num_experts_per_tok", default=1) if n_experts else 0
    attention = hidden * head_dim * (2 * q_heads + 2 * kv_heads)
    expert = 3 * hidden * number("moe_intermediate_size", default=width) if n_experts else 0
    mlp = hidden * n_experts if n_experts else 3 * hidden * width
    dtype = str(config.get("torch_dtype", config.get("dtype", "bfloat16")))
    return ModelShape(
        name=name,
        n_layers=layers,
        hidden_size=hidden,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_tokens=number("max_position_embeddings"),
        item_bytes=ITEM_BYTES.get(dtype, 2),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        dense_weights=layers * (attention + mlp) + vocab * hidden,
        expert_weights=layers * n_experts * expert,
        active_weights=layers * (attention + mlp + top_k * expert),
        n_experts=n_experts,
        top_k=top_k,
    )
