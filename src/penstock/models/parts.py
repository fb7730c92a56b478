"""What the parts of a layer are made from: named tensors, norms, angles, attention with and without sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from penstock.models.spec import NormSpec, RopeSpec
from penstock.ops.batch import SegmentBatch
from penstock.ops.merge_attention import merge_attention
from penstock.ops.paged_attention import paged_attention
from penstock.ops.rms_norm import rms_norm
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
) -> tuple[Tensor, Tensor]:
    """(out_THd, lse_TH) over all that a token reads. q_sinks: its query as sinks see it, where the batch has any."""
    out_THd, lse_TH = paged_attention(q_THd, kv, batch, scale, window_tokens, soft_cap)
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
