"""What a model is, as typed records. What differs between families is data here, never a second decoder.

A foreign config.json is translated into these once, by `families/<name>.py`. Nothing here knows a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NoScaling:
    """Positions as they are."""


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """NTK by parts, and scores scaled by `attention_factor` squared (YaRN, arXiv 2309.00071)."""

    factor: float
    original_max_tokens: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True


RopeScaling = NoScaling | LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary positions. dim: features of a head that are rotated, from the first on."""

    theta: float
    dim: int
    scaling: RopeScaling = NoScaling()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Softmax attention. rope None: no positions in this layer. window_tokens None: every earlier token is seen."""

    q_heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    has_qk_norm: bool = False
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    window_tokens: int | None = None

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSpec:
    """A gated MLP (silu) of inner `width`."""

    width: int
    has_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """A mixture of gated MLPs, each of inner `width`; a softmax router picks `top_k` of them for a token.

    is_normalized: the weights of the picked ones are scaled to sum to 1 (norm_topk_prob).
    """

    n_experts: int
    top_k: int
    width: int
    is_normalized: bool


MlpSpec = DenseSpec | ExpertsSpec


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer: norm, attention, norm, MLP, each half added to the residual stream."""

    attention: AttentionSpec
    mlp: MlpSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A whole model. dtype: of the stored weights. is_tied: the embedding is the head, too."""

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    is_tied: bool
    max_position_tokens: int
    stop_token_ids: frozenset[int]
    dtype: str
