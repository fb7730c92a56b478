"""What attention against a fixed maximum tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """counts_2: int64 on the device that computes: rows (a query head of a token) that were computed again, and rows.

    Kernels add to it and nobody waits. What needs no fixed maximum at all, such as a row whose keys are one part on a
    GPU, is never computed again.
    """

    counts_2: Tensor

    @classmethod
    def on(cls, device: torch.device | str) -> Fallbacks:
        return cls(torch.zeros(2, dtype=torch.int64, device=device))
