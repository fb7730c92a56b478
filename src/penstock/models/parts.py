"""What the parts of a layer are made from: named tensors, norms, angles, attention with and without sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.models.softmax import LayerAttention
from penstock.models.spec import NormSpec, RopeSpec
from penstock.ops.activation import Activation
from penstock.ops.batch import SegmentBatch
from penstock.ops.entry_linear import entry_linear
from penstock.ops.merge_attention import merge_attention
from penstock.ops.paged_attention import paged_attention
from penstock.ops.rms_norm import rms_norm
from penstock.ops.shared_attention import shared_attention
from penstock.ops.sink_attention import sink_attention

Rotated = Mapping[RopeSpec, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Angles:
    """(cos_TR, sin_TR) for `penstock.ops.rope`, by specification.

    tokens: by the places of tokens in their sequence. sinks: by their places among the keys that are kept, for queries
    that look at sinks; empty where none does.
    """

    tokens: Rotated
    sinks: Rotated


def attend(
    q_THd: Tensor,
    q_sinks_THd: Tensor | None,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    window_tokens: int | None,
    soft_cap: float | None = None,
    paged: LayerAttention = paged_attention,
) -> tuple[Tensor, Tensor]:
    """(out_THd, lse_TH) over all that a token reads. q_sinks: its query as sinks see it, where the batch has any.

    paged: what attends to the keys in the pool, where nothing is shared.
    """
    if batch.shared is not None:  # then no sequence is longer than a window, if the layer has one
        return shared_attention(q_THd, kv, batch, scale, soft_cap)
    out_THd, lse_TH = paged(q_THd, kv, batch, scale, window_tokens, soft_cap)
    if batch.sinks is None:
        return out_THd, lse_TH
    assert q_sinks_THd is not None
    of_sinks = sink_attention(q_sinks_THd, kv, batch.sinks, scale, soft_cap)
    return merge_attention(out_THd, lse_TH, *of_sinks)


@dataclass(frozen=True, slots=True)
class Scope:
    """The tensors whose names start with `prefix`."""

    tensors: Mapping[str, Tensor]
    prefix: str

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"{self.prefix}.{name}"]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(f"{self.prefix}.{name}")

    def within(self, name: str) -> Scope:
        return Scope(self.tensors, f"{self.prefix}.{name}")


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm that adds a residual first, if there is one: (normed, total)."""

    weight: Tensor
    spec: NormSpec

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return rms_norm(x, self.weight, self.spec.eps, residual, self.spec.is_centered)

    def by_mean(self, x_TD: Tensor, mean_T: Tensor) -> Tensor:
        """The norm of x where x is a part of what is normed: its own features of the weight, the mean square of all."""
        normed_TD = x_TD.float() * torch.rsqrt(mean_T[:, None] + self.spec.eps)
        if self.spec.is_centered:
            return (normed_TD * (1.0 + self.weight.float())).to(x_TD.dtype)
        return self.weight * normed_TD.to(x_TD.dtype)


@dataclass(frozen=True, slots=True)
class Entrance:
    """What half a layer starts from: the residual stream, what is still to be added to it, and the norm on top."""

    x_TD: Tensor
    change_TD: Tensor | None
    norm: Norm | None

    def normed(self) -> tuple[Tensor, Tensor]:
        """(what enters, the residual stream beside it)."""
        if self.norm is not None:
            return self.norm(self.x_TD, self.change_TD)
        total_TD = self.x_TD if self.change_TD is None else self.x_TD + self.change_TD
        return total_TD, total_TD

    def linear(
        self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None
    ) -> tuple[Tensor, Tensor]:
        """(what a linear layer, perhaps gated, makes of what enters, the residual stream)."""
        if self.norm is None:
            return entry_linear(self.x_TD, weight, bias, self.change_TD, activation=activation)
        norm, spec = self.norm.weight, self.norm.spec
        return entry_linear(self.x_TD, weight, bias, self.change_TD, norm, spec.eps, spec.is_centered, activation)


def linear(x_TD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer by itself."""
    return entry_linear(x_TD, weight, bias)[0]
