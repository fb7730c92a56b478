"""What decisions need to know of a model, from its spec alone: known before any memory is taken, and without torch."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.models.spec import AttentionSpec, LatentAttentionSpec, ModelSpec

CHUNK_TOKENS = 2048  # of one sequence in a step, where layers keep a window: all of them lie in the pool at once


def state_specs(spec: ModelSpec, block_tokens: int, kv_item_bytes: int, max_model_tokens: int) -> tuple[StateSpec, ...]:
    """The state groups of a model: layers whose state has one shape, and that keep the same tokens of it.

    A window that no sequence can leave behind is none.
    """
    groups: dict[tuple[int, int | None, int], list[int]] = {}
    for index, layer in enumerate(spec.layers):
        attention = layer.attention
        token_elements = 2 * attention.kv_heads * attention.head_dim
        is_left = attention.window_tokens is not None and attention.window_tokens < max_model_tokens
        kept = (attention.window_tokens, attention.sink_tokens) if is_left else (None, 0)
        groups.setdefault((token_elements, *kept), []).append(index)
    return tuple(
        StateSpec(
            name="kv" if window_tokens is None else f"window {window_tokens}",
            kind=StateKind.PAGED if window_tokens is None else StateKind.WINDOWED,
            layers=tuple(layers),
            block_tokens=block_tokens,
            block_bytes=block_tokens * token_elements * kv_item_bytes * len(layers),
            window_tokens=window_tokens,
            sink_tokens=sink_tokens,
            chunk_tokens=None if window_tokens is None else CHUNK_TOKENS,
        )
        for (token_elements, window_tokens, sink_tokens), layers in groups.items()
    )


def model_facts(
    spec: ModelSpec,
    name: str,
    *,
    block_tokens: int,
    kv_item_bytes: int,
    weight_bytes: int,
    max_model_tokens: int | None = None,
) -> ModelFacts:
    """The facts of a model with its state in blocks of `block_tokens`.

    kv_item_bytes: of a number in a block. max_model_tokens: below that of the model.
    """
    longest_tokens = max_model_tokens or spec.max_position_tokens
    return ModelFacts(
        name=name,
        n_layers=len(spec.layers),
        vocab_size=spec.vocab_size,
        max_model_tokens=longest_tokens,
        stop_token_ids=spec.stop_token_ids,
        states=state_specs(spec, block_tokens, kv_item_bytes, longest_tokens),
        weight_bytes=weight_bytes,
    )


def key_costs(spec: ModelSpec) -> Iterator[tuple[int | None, int, int]]:
    """Of each layer: (window, multiply-adds times 2 per key and token, numbers in the cache per key)."""
    for layer in spec.layers:
        match layer.attention:
            case AttentionSpec() as attention:
                numbers = 2 * attention.kv_heads * attention.head_dim
                yield attention.window_tokens, 4 * attention.q_heads * attention.head_dim, numbers
            case LatentAttentionSpec() as latent:  # scores over latent and rotated part, values over the latent
                yield None, 2 * latent.q_heads * (latent.head_dim + latent.kv_rank), latent.head_dim
