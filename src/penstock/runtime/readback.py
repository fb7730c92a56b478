"""What a step leaves for `collect`: host copies that may still be on their way, and how they become a `StepResult`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from penstock.core.executor import StepResult, TokenLogprobs
from penstock.ops.sample import Logprobs
from penstock.runtime.movers import Moved
from penstock.runtime.transfer import fetch

KERNEL_BY_KERNEL = "kernel by kernel"


@dataclass(frozen=True, slots=True)
class LogprobsHost:
    """Host copies of `ops.sample.Logprobs`. counts: how many of the top ones each position asked for."""

    ids: Tensor
    chosen: Tensor
    ranks: Tensor
    top_ids: Tensor
    top: Tensor
    counts: tuple[int, ...]

    @classmethod
    def fetched(cls, ids_N: Tensor, found: Logprobs, counts: tuple[int, ...]) -> LogprobsHost:
        """Start the copies; `found` belongs to `ids_N`."""
        return cls(
            ids=fetch(ids_N),
            chosen=fetch(found.chosen_N),
            ranks=fetch(found.rank_N),
            top_ids=fetch(found.top_ids_NK),
            top=fetch(found.top_NK),
            counts=counts,
        )

    def records(self) -> tuple[TokenLogprobs, ...]:
        """One record per position; only once the copies are complete."""
        columns = (column.tolist() for column in (self.ids, self.chosen, self.ranks, self.top_ids, self.top))
        return tuple(
            TokenLogprobs(token, logprob, rank, tuple(zip(top_ids[:count], top[:count], strict=True)))
            for token, logprob, rank, top_ids, top, count in zip(*columns, self.counts, strict=True)
        )


class Stopwatch:
    """Time that the device works on a step, and whether it is done."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.Event, torch.Event] | None = None
        if device.type != "cpu":
            self._events = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
            self._events[0].record()
        self._start_s = time.monotonic()
        self._stop_s = self._start_s

    def stop(self) -> None:
        """All work of the step is queued (on a CPU: done)."""
        self._stop_s = time.monotonic()
        if self._events is not None:
            self._events[1].record()

    def wait_s(self) -> float:
        """Wait until the work is done; the seconds that it took."""
        if self._events is None:
            return self._stop_s - self._start_s
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1000

    @property
    def host_span_s(self) -> tuple[float, float]:
        """On a CPU when the work began and ended; on an accelerator when it was queued."""
        return self._start_s, self._stop_s

    @property
    def events(self) -> tuple[torch.Event, torch.Event] | None:
        """On an accelerator the points in its stream at which the work begins and ends."""
        return self._events


@dataclass(frozen=True, slots=True)
class Samples:
    """ids: int32, in the order that `Plan` states. logprobs: of the samples at `logprobs_at`."""

    ids: Tensor
    logprobs_at: tuple[int, ...]
    logprobs: LogprobsHost | None


@dataclass(frozen=True, slots=True)
class KeysRead:
    """Keys of one layer that decode rows read, and those that they did not because they read some together."""

    n_read: int = 0
    n_saved: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Readback:
    """A step whose work is queued. prompt_logprobs: by chunk, in slices of positions. moved: asked when it is read.

    how: what ran, in words for people.
    """

    watch: Stopwatch
    how: str = KERNEL_BY_KERNEL
    samples: Samples | None = None
    prompt_logprobs: Mapping[int, tuple[LogprobsHost, ...]] = field(default_factory=dict)
    moved: Callable[[], Moved]
    keys: KeysRead = field(default_factory=KeysRead)

    def result(self) -> StepResult:
        """Wait for the device, then read."""
        device_s = self.watch.wait_s()
        prompts = {
            chunk: tuple(record for part in parts for record in part.records())
            for chunk, parts in self.prompt_logprobs.items()
        }
        records: tuple[TokenLogprobs, ...] = ()
        tokens = np.empty(0, np.int32)
        if self.samples is not None:
            tokens = self.samples.ids.numpy()
            records = self.samples.logprobs.records() if self.samples.logprobs is not None else ()
        return StepResult(
            tokens=tokens,
            logprobs=dict(zip(self.samples.logprobs_at if self.samples else (), records, strict=True)),
            prompt_logprobs=prompts,
            device_s=device_s,
            moved=self.moved(),
            keys_read=self.keys.n_read,
            keys_saved=self.keys.n_saved,
        )
