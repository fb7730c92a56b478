"""What the parts of a layer are made from: named tensors, norms, angles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from penstock.models.spec import NormSpec, RopeSpec
from penstock.ops.rms_norm import rms_norm

Angles = Mapping[RopeSpec, tuple[Tensor, Tensor]]


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
