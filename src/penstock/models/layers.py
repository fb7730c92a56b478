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
from penstock.models.parts import Angles, Norm, Rotated, Scope, attend
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
from penstock.ops.gated import GATED
from penstock.ops.rope import rope
from penstock.ops.route import route
from penstock.ops.write_kv import write_kv


class _Mixer(Protocol):
    def __call__(self, x_TD: Tensor, batch: SegmentBatch, kv: Tensor, angles: Angles) -> Tensor: ...


class _Mlp(Protocol):
    def __call__(self, x_TD: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Attention and MLP with the norms before and behind each. fused: all of it in one call, where there is one."""

    input_norm: Norm | None
    attention: _Mixer
    attention_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp: _Mlp
    mlp_post_norm: Norm | None
    fused: FusedLayer | None

    @classmethod
    def of(cls, layer: LayerSpec, norm: NormSpec, scope: Scope) -> Layer:
        def norm_of(name: str, is_there: bool) -> Norm | None:
            return Norm(scope[name], norm) if is_there else None

        return cls(
            input_norm=norm_of("input_norm", layer.norms.has_before),
            attention=_mixer(layer.attention, norm, scope.within("attention")),
            attention_post_norm=norm_of("attention_post_norm", layer.norms.has_behind),
            mlp_norm=norm_of("mlp_norm", layer.norms.has_before),
            mlp=_mlp(layer.mlp, scope.within("mlp")),
            mlp_post_norm=norm_of("mlp_post_norm", layer.norms.has_behind),
            fused=FusedLayer.of(layer, norm, scope),
        )

    def __call__(
        self, x_TD: Tensor, change_TD: Tensor | None, batch: SegmentBatch, kv: Tensor, angles: Angles
    ) -> tuple[Tensor, Tensor]:
        """(residual stream, what is still to be added to it), from the same: an addition waits for the next norm."""
        if self.fused is not None and self.fused.serves(x_TD, batch, kv):
            return self.fused(x_TD, change_TD, batch, kv, angles)
        entering_TD, x_TD = _enter(self.input_norm, x_TD, change_TD)
        change_TD = _leave(self.attention_post_norm, self.attention(entering_TD, batch, kv, angles))
        entering_TD, x_TD = _enter(self.mlp_norm, x_TD, change_TD)
        return x_TD, _leave(self.mlp_post_norm, self.mlp(entering_TD))


def _enter(norm: Norm | None, x_TD: Tensor, change_TD: Tensor | None) -> tuple[Tensor, Tensor]:
    """What enters half a layer, and the residual stream beside it."""
    if norm is not None:
        return norm(x_TD, change_TD)
    total_TD = x_TD if change_TD is None else x_TD + change_TD
    return total_TD, total_TD


def _leave(norm: Norm | None, x_TD: Tensor) -> Tensor:
    return x_TD if norm is None else norm(x_TD)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """qk_norm: over each head; q_norm, k_norm: each over a whole projection."""

    spec: AttentionSpec
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    sinks: Tensor | None
    out: Tensor
    out_bias: Tensor | None

    @classmethod
    def of(cls, spec: AttentionSpec, norm: NormSpec, scope: Scope) -> _Attention:
        def norm_of(name: str, span: QkNorm) -> Norm | None:
            return Norm(scope[name], norm) if spec.qk_norm is span else None

        return cls(
            spec=spec,
            qkv=scope["qkv"],
            qkv_bias=scope.get("qkv_bias"),
            qk_norm=norm_of("qk_norm", QkNorm.HEAD),
            q_norm=norm_of("q_norm", QkNorm.PROJECTION),
            k_norm=norm_of("k_norm", QkNorm.PROJECTION),
            sinks=scope.get("sinks"),
            out=scope["out"],
            out_bias=scope.get("out_bias"),
        )

    def __call__(self, x_TD: Tensor, batch: SegmentBatch, kv: Tensor, angles: Angles) -> Tensor:
        spec, n_qk = self.spec, self.spec.q_heads + self.spec.kv_heads
        qkv_THd = F.linear(x_TD, self.qkv, self.qkv_bias).view(len(x_TD), -1, spec.head_dim)
        qk_THd, v_THd = self._normed(qkv_THd[:, :n_qk]), qkv_THd[:, n_qk:]
        q_sinks_THd = None if batch.sinks is None else self._rotated(qk_THd[:, : spec.q_heads], angles.sinks)
        qk_THd = self._rotated(qk_THd, angles.tokens)
        write_kv(qk_THd[:, spec.q_heads :], v_THd, kv, batch.slots_T)
        out_THd, lse_TH = attend(
            qk_THd[:, : spec.q_heads], q_sinks_THd, kv, batch, spec.scale, spec.window_tokens, spec.soft_cap
        )
        if self.sinks is not None:
            out_THd, _ = add_sink(out_THd, lse_TH, self.sinks)
        return F.linear(out_THd.flatten(1), self.out, self.out_bias)

    def _rotated(self, x_THd: Tensor, angles: Rotated) -> Tensor:
        return x_THd if self.spec.rope is None else rope(x_THd, *angles[self.spec.rope])

    def _normed(self, qk_THd: Tensor) -> Tensor:
        if self.qk_norm is not None:
            return self.qk_norm(qk_THd)[0]
        if self.q_norm is None or self.k_norm is None:
            return qk_THd
        q_Tx, k_Tx = (part.flatten(1) for part in qk_THd.tensor_split((self.spec.q_heads,), dim=1))
        return torch.cat((self.q_norm(q_Tx)[0], self.k_norm(k_Tx)[0]), dim=1).view(qk_THd.shape)


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

    def __call__(self, x_TD: Tensor) -> Tensor:
        gated_TF = GATED[self.activation](F.linear(x_TD, self.gate_up, self.gate_up_bias))
        return F.linear(gated_TF, self.down, self.down_bias)


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

    def __call__(self, x_TD: Tensor) -> Tensor:
        spec = self.spec
        logits_TE = F.linear(x_TD, self.router, self.router_bias)
        chosen = route(logits_TE, spec.top_k, spec.is_normalized, spec.routed_scale, spec.n_groups, spec.top_groups)
        routed_TD = experts(x_TD, self.gate_up, self.down, *chosen, spec.activation, self.gate_up_bias, self.down_bias)
        if self.shared is None:
            return routed_TD
        shared_TD = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = torch.sigmoid(F.linear(x_TD, self.shared_gate)) * shared_TD
        return routed_TD + shared_TD


def _mixer(spec: AttentionSpec | LatentAttentionSpec, norm: NormSpec, scope: Scope) -> _Mixer:
    match spec:
        case AttentionSpec():
            return _Attention.of(spec, norm, scope)
        case LatentAttentionSpec():
            return LatentAttention.of(spec, scope)


def _mlp(spec: MlpSpec, scope: Scope) -> _Mlp:
    match spec:
        case DenseSpec():
            return _Dense.of(spec, scope)
        case ExpertsSpec():
            return _Experts.of(spec, scope)
