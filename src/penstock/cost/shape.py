"""What a model asks of a device per token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder, or one with experts, in sums over its layers.

    weight_bytes: of all parameters in memory. dense_bytes: of those that every token of a step reads, head included and
    embedding not. expert_bytes: of all experts of all layers; a token reads `top_k` of `n_experts`. active_weights:
    parameters of the layers that one token is multiplied with. head_weights, head_bytes: of the head alone.
    kv_token_bytes: keys and values of one token in all layers. key_flops: of one token that sees one key in each layer.
    """

    name: str
    weight_bytes: int
    active_weights: int
    head_weights: int
    n_experts: int
    top_k: int
    dense_bytes: int
    expert_bytes: int
    head_bytes: int
    kv_token_bytes: int
    key_flops: int

    def read_bytes(self, tokens: int) -> float:
        """Weights that a step of so many tokens reads, if they choose their experts evenly."""
        untouched_frac = (1 - self.top_k / self.n_experts) ** tokens if self.n_experts else 0.0
        return self.dense_bytes + self.expert_bytes * (1 - untouched_frac)
