"""What decisions need to know of a model, from its spec alone: known before any of its memory is taken."""

from __future__ import annotations

import torch

from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.models.spec import ModelSpec


def state_specs(spec: ModelSpec, block_tokens: int, kv_dtype: torch.dtype) -> tuple[StateSpec, ...]:
    """The state groups of a model: all layers in one paged group."""
    sizes = {(layer.attention.kv_heads, layer.attention.head_dim) for layer in spec.layers}
    assert len(sizes) == 1, f"layers with states of different shapes need a group each: {sizes}"
    kv_heads, head_dim = sizes.pop()
    layer_bytes = 2 * block_tokens * kv_heads * head_dim * kv_dtype.itemsize
    layers = tuple(range(len(spec.layers)))
    return (
        StateSpec(
            name="kv",
            kind=StateKind.PAGED,
            layers=layers,
            block_tokens=block_tokens,
            block_bytes=layer_bytes * len(layers),
        ),
    )


def model_facts(
    spec: ModelSpec, name: str, *, block_tokens: int, kv_dtype: torch.dtype, weight_bytes: int
) -> ModelFacts:
    """The facts of a model with its state in blocks of `block_tokens`."""
    return ModelFacts(
        name=name,
        n_layers=len(spec.layers),
        vocab_size=spec.vocab_size,
        max_model_tokens=spec.max_position_tokens,
        stop_token_ids=spec.stop_token_ids,
        states=state_specs(spec, block_tokens, kv_dtype),
        weight_bytes=weight_bytes,
    )
