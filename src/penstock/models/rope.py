"""Rotary frequencies, computed as transformers does; `rope_config.py` reads what they are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.core.errors import CorruptModel
from penstock.models.spec import (
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NoScaling,
    RopeSpec,
    YarnScaling,
)
from penstock.ops.rope_angles import rope_angles


@dataclass(frozen=True, slots=True)
class Rotation:
    """Frequencies of one RopeSpec on a device; R rotated pairs."""

    inv_freq_R: Tensor
    attention_factor: float

    @classmethod
    def of(cls, spec: RopeSpec, device: torch.device) -> Rotation:
        """Raises CorruptModel for parameters that make no frequencies."""
        exponents_R = torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim
        try:
            inv_freq_R, attention_factor = _scale(1.0 / spec.theta**exponents_R, spec)
        except (ArithmeticError, ValueError):  # a logarithm of 0, a division by 0
            inv_freq_R, attention_factor = torch.full((1,), math.nan), 1.0
        if not (inv_freq_R.isfinite().all() and math.isfinite(attention_factor)):
            raise CorruptModel(f"these rotary positions have no finite frequencies: {spec}. Check the configuration")
        return cls(inv_freq_R.to(device), attention_factor)

    def angles(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """(cos_TR, sin_TR), float32, for `penstock.ops.rope`."""
        return rope_angles(positions_T, self.inv_freq_R, self.attention_factor)


def _scale(inv_freq_R: Tensor, spec: RopeSpec) -> tuple[Tensor, float]:
    match spec.scaling:
        case NoScaling():
            return inv_freq_R, 1.0
        case LinearScaling(factor):
            return inv_freq_R / factor, 1.0
        case FactorScaling(factors):
            return inv_freq_R / torch.tensor(factors), 1.0
        case Llama3Scaling():
            return _llama3(inv_freq_R, spec.scaling), 1.0
        case YarnScaling():
            return _yarn(inv_freq_R, spec, spec.scaling), spec.scaling.attention_factor
        case LongRopeScaling():
            return inv_freq_R / torch.tensor(spec.scaling.factors), spec.scaling.attention_factor


def _llama3(inv_freq_R: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelength_R = 2 * math.pi / inv_freq_R
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_frac_R = ((scaling.original_max_tokens / wavelength_R - low) / (high - low)).clamp(0, 1)
    return (1 - kept_frac_R) * inv_freq_R / scaling.factor + kept_frac_R * inv_freq_R


def _yarn(inv_freq_R: Tensor, spec: RopeSpec, scaling: YarnScaling) -> Tensor:
    def pair_that_turns(rotations: float) -> float:
        turns = scaling.original_max_tokens / (rotations * 2 * math.pi)
        return spec.dim * math.log(turns) / (2 * math.log(spec.theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    if low == high:
        high += 0.001  # as the original does, against a division by 0
    slowed_frac_R = ((torch.arange(spec.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inv_freq_R / scaling.factor * slowed_frac_R + inv_freq_R * (1 - slowed_frac_R)
