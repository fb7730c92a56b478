"""The parts of a decoder layer, with their weights. What a spec does not have is None here.

Shape letters: T tokens of the step, D hidden size, H heads (queries, then keys, then values in a fused projection),
d head dim, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.models.fused import FusedLayer
from penstock.models.latent import LatentAttention
from penstock.models.parts import Angles, Entrance, Norm, Scope, attend, linear
from penstock.models.peers import Peers
from penstock.models.softmax import LayerAttention
from penstock.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertsSpec,
    LatentAttentionSpec,
    LayerSpec,
    MlpSpec,
    NormSpec,
    QkNorm,
)
from penstock.ops.activation import Activation
from penstock.ops.add_sink import add_sink
from penstock.ops.batch import SegmentBatch
from penstock.ops.experts import experts
from penstock.ops.paged_attention import paged_attention
from penstock.ops.rope import rope
from penstock.ops.rope_and_store import rope_and_store
from penstock.ops.route import route


class _Mixer(Protocol):
    def __call__(
        self, entrance: Entrance, batch: SegmentBatch, kv: Tensor, angles: Angles
    ) -> tuple[Tensor, Tensor]: ...


class _Mlp(Protocol):
    def __call__(self, entrance: Entrance) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Attention and MLP with the norms before and behind each. fused: all of it in one call, where there is one.

    peers: ranks that hold the rest of this layer; None: there is none. What attention or MLP adds is a sum over them.
    """

    input_norm: Norm | None
    attention: _Mixer
    attention_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp: _Mlp
    mlp_post_norm: Norm | None
    fused: FusedLayer | None
    peers: Peers | None

    @classmethod
    def of(
        cls,
        layer: LayerSpec,
        norm: NormSpec,
        scope: Scope,
        peers: Peers | None = None,
        paged: LayerAttention | None = None,
    ) -> Layer:
        """paged: what attends to the keys in the pool; None: `paged_attention`."""

        def norm_of(name: str, is_there: bool) -> Norm | None:
            return Norm(scope[name], norm) if is_there else None

        return cls(
            input_norm=norm_of("input_norm", layer.norms.has_before),
            attention=_mixer(layer.attention, norm, scope.within("attention"), peers, paged or paged_attention),
            attention_post_norm=norm_of("attention_post_norm", layer.norms.has_behind),
            mlp_norm=norm_of("mlp_norm", layer.norms.has_before),
            mlp=_mlp(layer.mlp, scope.within("mlp")),
            mlp_post_norm=norm_of("mlp_post_norm", layer.norms.has_behind),
            fused=FusedLayer.of(layer, norm, scope, paged) if peers is None else None,  # it has no sum in its middle
            peers=peers,
        )

    def __call__(
        self, x_TD: Tensor, change_TD: Tensor | None, batch: SegmentBatch, kv: Tensor, angles: Angles
    ) -> tuple[Tensor, Tensor]:
        """(residual stream, what is still to be added to it), from the same: an addition waits for the next norm."""
        if self.fused is not None and self.fused.serves(x_TD, batch, kv):
            return self.fused(x_TD, change_TD, batch, kv, angles)
        change_TD, x_TD = self.attention(Entrance(x_TD, change_TD, self.input_norm), batch, kv, angles)
        change_TD = self._leave(self.attention_post_norm, change_TD)
        change_TD, x_TD = self.mlp(Entrance(x_TD, change_TD, self.mlp_norm))
        return x_TD, self._leave(self.mlp_post_norm, change_TD)

    def _leave(self, norm: Norm | None, x_TD: Tensor) -> Tensor:
        if self.peers is not None:
            x_TD = self.peers.sum(x_TD)
        return x_TD if norm is None else norm(x_TD)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """qk_norm: over each head; q_norm, k_norm: each over a whole projection, that of all ranks."""

    spec: AttentionSpec
    peers: Peers | None
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    sinks: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    paged: LayerAttention

    @classmethod
    def of(
        cls, spec: AttentionSpec, norm: NormSpec, scope: Scope, peers: Peers | None, paged: LayerAttention
    ) -> _Attention:
        def norm_of(name: str, span: QkNorm) -> Norm | None:
            return Norm(scope[name], norm) if spec.qk_norm is span else None

        return cls(
            spec=spec,
            peers=peers,
            qkv=scope["qkv"],
            qkv_bias=scope.get("qkv_bias"),
            qk_norm=norm_of("qk_norm", QkNorm.HEAD),
            q_norm=norm_of("q_norm", QkNorm.PROJECTION),
            k_norm=norm_of("k_norm", QkNorm.PROJECTION),
            sinks=scope.get("sinks"),
            out=scope["out"],
            out_bias=scope.get("out_bias"),
            paged=paged,
        )

    def __call__(self, entrance: Entrance, batch: SegmentBatch, kv: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """(what attention adds, residual stream)."""
        spec = self.spec
        qkv_Tx, x_TD = entrance.linear(self.qkv, self.qkv_bias)
        qkv_THd = qkv_Tx.view(len(x_TD), -1, spec.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            self._norm_projections(qkv_THd, self.q_norm, self.k_norm)
        q_sinks_THd = None if batch.sinks is None else self._seen_by_sinks(qkv_THd, angles)
        norm, turned = self.qk_norm, (None, None) if spec.rope is None else angles.tokens[spec.rope]
        if norm is None:
            q_THd = rope_and_store(qkv_THd, kv, batch.slots_T, None, 0.0, False, *turned)
        else:
            stored = kv, batch.slots_T, norm.weight, norm.spec.eps, norm.spec.is_centered
            q_THd = rope_and_store(qkv_THd, *stored, *turned)
        limits = spec.window_tokens, spec.soft_cap
        out_THd, lse_TH = attend(q_THd, q_sinks_THd, kv, batch, spec.scale, *limits, self.paged)
        if self.sinks is not None:
            out_THd, _ = add_sink(out_THd, lse_TH, self.sinks)
        return linear(out_THd.flatten(1), self.out, self.out_bias), x_TD

    def _seen_by_sinks(self, qkv_THd: Tensor, angles: Angles) -> Tensor:
        """Queries, rotated by their places among the keys that are kept."""
        qk_THd = qkv_THd[:, : self.spec.q_heads + self.spec.kv_heads]
        if self.qk_norm is not None:
            qk_THd = self.qk_norm(qk_THd)[0]
        q_THd = qk_THd[:, : self.spec.q_heads]
        return q_THd if self.spec.rope is None else rope(q_THd, *angles.sinks[self.spec.rope])

    def _norm_projections(self, qkv_THd: Tensor, q_norm: Norm, k_norm: Norm) -> None:
        """Whole projections, in place."""
        n_q, n_k = self.spec.q_heads, self.spec.kv_heads
        q_THd, k_THd = qkv_THd[:, :n_q], qkv_THd[:, n_q : n_q + n_k]
        if self.peers is None:
            for norm, part_THd in ((q_norm, q_THd), (k_norm, k_THd)):
                part_THd.copy_(norm(part_THd.flatten(1))[0].view(part_THd.shape))
            return
        # every rank has as many features, and KV heads that several hold weigh the same in sum and count: so the mean
        # over the projection is the mean over ranks
        means_2T = torch.stack([part.float().square().mean((1, 2)) for part in (q_THd, k_THd)])
        means_2T = self.peers.sum(means_2T) / self.peers.shard.size
        for norm, part_THd, mean_T in ((q_norm, q_THd, means_2T[0]), (k_norm, k_THd, means_2T[1])):
            part_THd.copy_(norm.by_mean(part_THd.flatten(1), mean_T).view(part_THd.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dense:
    activation: Activation
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    @classmethod
    def of(cls, spec: DenseSpec, scope: Scope) -> _Dense:
        return cls(
            activation=spec.activation,
            gate_up=scope["gate_up"],
            gate_up_bias=scope.get("gate_up_bias"),
            down=scope["down"],
            down_bias=scope.get("down_bias"),
        )

    def __call__(self, entrance: Entrance) -> tuple[Tensor, Tensor]:
        """(what the MLP adds, residual stream)."""
        gated_TF, x_TD = entrance.linear(self.gate_up, self.gate_up_bias, self.activation)
        return linear(gated_TF, self.down, self.down_bias), x_TD


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experts:
    spec: ExpertsSpec
    router: Tensor
    router_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    shared: _Dense | None
    shared_gate: Tensor | None

    @classmethod
    def of(cls, spec: ExpertsSpec, scope: Scope) -> _Experts:
        return cls(
            spec=spec,
            router=scope["router"],
            router_bias=scope.get("router_bias"),
            gate_up=scope["gate_up"],
            gate_up_bias=scope.get("gate_up_bias"),
            down=scope["down"],
            down_bias=scope.get("down_bias"),
            shared=None if spec.shared is None else _Dense.of(spec.shared, scope.within("shared")),
            shared_gate=scope.get("shared_gate"),
        )

    def __call__(self, entrance: Entrance) -> tuple[Tensor, Tensor]:
        """(what the experts add, residual stream)."""
        entering_TD, x_TD = entrance.normed()
        return self._of(entering_TD), x_TD

    def _of(self, x_TD: Tensor) -> Tensor:
        spec = self.spec
        logits_TE = linear(x_TD, self.router, self.router_bias)
        chosen = route(logits_TE, spec.top_k, spec.is_normalized, spec.routed_scale, spec.n_groups, spec.top_groups)
        routed_TD = experts(x_TD, self.gate_up, self.down, *chosen, spec.activation, self.gate_up_bias, self.down_bias)
        if self.shared is None:
            return routed_TD
        shared_TD, _ = self.shared(Entrance(x_TD, None, None))
        if self.shared_gate is not None:
            shared_TD = torch.sigmoid(F.linear(x_TD, self.shared_gate)) * shared_TD
        return routed_TD + shared_TD


def _mixer(
    spec: AttentionSpec | LatentAttentionSpec, norm: NormSpec, scope: Scope, peers: Peers | None, paged: LayerAttention
) -> _Mixer:
    match spec:
        case AttentionSpec():
            return _Attention.of(spec, norm, scope, peers, paged)
        case LatentAttentionSpec():
            return LatentAttention.of(spec, scope, paged)


def _mlp(spec: MlpSpec, scope: Scope) -> _Mlp:
    match spec:
        case DenseSpec():
            return _Dense.of(spec, scope)
        case ExpertsSpec():
            return _Experts.of(spec, scope)
