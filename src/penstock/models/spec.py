"""What a model is, as typed records. What differs between families is data here, never a second decoder.

A foreign config.json is translated into these once, by `families/<name>.py`. Nothing here knows a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from penstock.ops.activation import Activation


@dataclass(frozen=True, slots=True)
class NoScaling:
    """Positions as they are."""


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True)
class FactorScaling:
    """Every frequency divided by a factor of its own; how GGUF files keep the scaling of Llama 3.1."""

    factors: tuple[float, ...]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeScaling:
    """As `FactorScaling`, and scores scaled by `attention_factor` squared (LongRoPE, arXiv 2402.13753).

    Published models bring a second set for sequences beyond `original_max_tokens`. All keys of a sequence would change
    when it crosses that length, so the model ends there instead.
    """

    factors: tuple[float, ...]
    original_max_tokens: int
    attention_factor: float


RopeScaling = NoScaling | LinearScaling | FactorScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary positions. dim: features of a head that are rotated, from the first on."""

    theta: float
    dim: int
    scaling: RopeScaling = NoScaling()


class QkNorm(Enum):
    """What a norm on queries and keys spans: each head by itself, or a whole projection."""

    HEAD = "head"
    PROJECTION = "projection"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Softmax attention over grouped heads.

    rope None: no positions in this layer. window_tokens: keys that a token sees at most, itself included; None: every
    earlier one. sink_tokens: first tokens that it sees besides, as if they stood right before the window (see
    `models/streaming.py`). score_scale None: 1 / sqrt(head_dim). soft_cap: see `penstock.ops.paged_attention`.
    has_sinks: each head has one, see `penstock.ops.add_sink`.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    qk_norm: QkNorm | None = None
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    window_tokens: int | None = None
    sink_tokens: int = 0
    score_scale: float | None = None
    soft_cap: float | None = None
    has_sinks: bool = False

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim) if self.score_scale is None else self.score_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionSpec:
    """Attention over latents that all heads share (MLA, see `models/latent.py`).

    q_rank None: queries come straight from the hidden state. nope_dim: unrotated features of a head, beside those that
    `rope` rotates. norm: of the latents. has_bias: of the first projections and of the last. window_tokens,
    sink_tokens: as in `AttentionSpec`.
    """

    q_heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    v_dim: int
    rope: RopeSpec
    scale: float
    norm: NormSpec
    has_bias: bool = False
    window_tokens: int | None = None
    sink_tokens: int = 0

    @property
    def kv_heads(self) -> int:
        return 1

    @property
    def head_dim(self) -> int:
        """Of what the pool holds: a latent and the rotated part of the key."""
        return self.kv_rank + self.rope.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSpec:
    """A gated MLP of inner `width`."""

    width: int
    has_bias: bool = False
    activation: Activation = Activation.SILU


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """A mixture of gated MLPs, each of inner `width`; a softmax router picks `top_k` of them for a token.

    is_normalized: the weights of the picked ones are scaled to sum to 1 (norm_topk_prob). shared: an MLP that every
    token passes, too; has_shared_gate: weighed by a sigmoid of the token. has_bias: of the router and of every expert.
    routed_scale, n_groups, top_groups: see `penstock.ops.route`.
    """

    n_experts: int
    top_k: int
    width: int
    is_normalized: bool
    activation: Activation = Activation.SILU
    shared: DenseSpec | None = None
    has_shared_gate: bool = False
    has_bias: bool = False
    routed_scale: float = 1.0
    n_groups: int = 1
    top_groups: int = 1


MlpSpec = DenseSpec | ExpertsSpec


class NormPlace(Enum):
    """Where the norms of a layer stand: before attention and MLP, behind them, or both."""

    BEFORE = "before"
    BEHIND = "behind"
    AROUND = "around"

    @property
    def has_before(self) -> bool:
        return self is not NormPlace.BEHIND

    @property
    def has_behind(self) -> bool:
        return self is not NormPlace.BEFORE


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer: attention, then MLP, each added to the residual stream, with norms where `norms` says."""

    attention: AttentionSpec | LatentAttentionSpec
    mlp: MlpSpec
    norms: NormPlace = NormPlace.BEFORE


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """Every RMS norm of a model. is_centered: the stored weights are differences from 1 (Gemma)."""

    eps: float
    is_centered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A whole model. dtype: of the stored weights. is_tied: the embedding is the head, too.

    embed_scale: what embeddings are multiplied by. logit_soft_cap: as `AttentionSpec.soft_cap`, for the logits.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    is_tied: bool
    max_position_tokens: int
    stop_token_ids: frozenset[int]
    dtype: str
    embed_scale: float = 1.0
    logit_soft_cap: float | None = None


Run = tuple[int, int]  # half open


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `size` equal parts of a model."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size

    def run(self, n: int, first: int = 0) -> Run:
        """This rank's stretch of `n` places that begin at `first`."""
        each = n // self.size
        return first + self.rank * each, first + (self.rank + 1) * each

    def kv_run(self, kv_heads: int) -> Run:
        """The KV heads that this rank's query heads read: one that several ranks share is held by each of them."""
        if kv_heads >= self.size:
            return self.run(kv_heads)
        head = self.rank * kv_heads // self.size
        return head, head + 1

    def vocab_rows(self, vocab_size: int) -> int:
        """Rows of embedding and head on every rank; those of the last ranks may stand for no token."""
        return -(-vocab_size // self.size)


ALONE = Shard()
