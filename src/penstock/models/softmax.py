"""Layers whose decode steps sum against a maximum from calibration, and when they give it up.

A layer's attention is a call with the arguments of `paged_attention`: that itself, or one of these. Calibration and the
bounds are in `ops/unified_max.py`; here is what changes while a model runs: counts, and whether a layer still does it.

Shape letters: Y layers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.paged_attention import paged_attention
from penstock.ops.unified_attention import unified_attention
from penstock.ops.unified_attention.fallbacks import Fallbacks
from penstock.ops.unified_max import FallbackWatch, SoftmaxCalibration, UnifiedMax

log = logging.getLogger(__name__)


class LayerAttention(Protocol):
    """What `paged_attention` is to a layer."""

    def __call__(
        self,
        q_THd: Tensor,
        kv: Tensor,
        batch: SegmentBatch,
        scale: float,
        window_tokens: int | None,
        soft_cap: float | None,
        /,
    ) -> tuple[Tensor, Tensor]: ...


class LayerAttentions(Protocol):
    """What attends in each layer; None: `paged_attention`."""

    @property
    def layers(self) -> Sequence[LayerAttention | None]: ...

    def review(self) -> tuple[int, ...]:
        """Layers that compute otherwise from now on."""
        ...


class UnifiedSoftmax:
    """Of one layer. is_on: false once it fell back too often."""

    def __init__(self, unified: UnifiedMax, fallbacks: Fallbacks) -> None:
        self.unified, self.fallbacks = unified, fallbacks
        self.is_on = True

    def __call__(
        self,
        q_THd: Tensor,
        kv: Tensor,
        batch: SegmentBatch,
        scale: float,
        window_tokens: int | None,
        soft_cap: float | None,
        /,
    ) -> tuple[Tensor, Tensor]:
        """As `paged_attention`, which also serves steps with longer segments."""
        if self.is_on and batch.is_decode:
            return unified_attention(q_THd, kv, batch, scale, self.unified, self.fallbacks, window_tokens, soft_cap)
        return paged_attention(q_THd, kv, batch, scale, window_tokens, soft_cap)


class SoftmaxLayers:
    """Of a whole model; None for a layer whose scores spread too far."""

    def __init__(self, calibrations: Sequence[SoftmaxCalibration], device: torch.device) -> None:
        self.counts_Y2 = torch.zeros((len(calibrations), 2), dtype=torch.int64, device=device)
        self.layers = tuple(
            None if found.unified is None else UnifiedSoftmax(found.unified, Fallbacks(counts_2))
            for found, counts_2 in zip(calibrations, self.counts_Y2, strict=True)
        )
        self._watches = [FallbackWatch() for _ in calibrations]
        self._copied: tuple[Tensor, torch.cuda.Event] | None = None

    def review(self) -> tuple[int, ...]:
        """Layers that are given up now; asked every few hundred steps. Never waits: a GPU's counts are those of the
        last time it was asked.
        """
        counts = self._counts()
        given_up = []
        for index, (layer, watch, (fallbacks, rows)) in enumerate(
            zip(self.layers, self._watches, counts, strict=False)
        ):
            if layer is not None and layer.is_on and watch.is_too_often(fallbacks, rows):
                layer.is_on = False
                given_up.append(index)
                log.warning(
                    "layer %d goes back to a softmax with its own maximum: %d of %d rows left the bounds of its "
                    "calibration; `penstock profile softmax` with prompts like yours may widen them",
                    index, fallbacks, rows,
                )  # fmt: skip
        return tuple(given_up)

    def _counts(self) -> list[list[int]]:
        """[fallbacks, rows] by layer; empty while the first copy is under way."""
        if self.counts_Y2.device.type == "cpu":
            return self.counts_Y2.tolist()
        if self._copied is not None and not self._copied[1].query():  # type: ignore[no-untyped-call]
            return []
        found = [] if self._copied is None else self._copied[0].tolist()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        host = torch.empty(self.counts_Y2.shape, dtype=torch.int64, pin_memory=True)
        host.copy_(self.counts_Y2, non_blocking=True)
        event.record()
        self._copied = host, event
        return found
