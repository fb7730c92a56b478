"""Time the implementations of a model's linear layers, for few rows up to many.

Every weight of a shape is used in turn, one of each layer, as in a step; so they are as cold as a step finds them. On a
GPU the cache is filled with something else before each call. The three implementations take turns, so that a
disturbance of the machine hits all of them.

Shape letters: M rows, K inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.models.decoder import Decoder
from penstock.ops.activation import Activation
from penstock.ops.dispatch import ALWAYS, Timing
from penstock.ops.entry_linear import entry_linear
from penstock.ops.packed import PackedWeight
from penstock.ops.tuned import MOST_FLAT_ROWS, MOST_SINGLE_ROWS, TunedWeight
from penstock.runtime.kernel_table import Shape, is_tunable, shape_of

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
REPEATS = 3
LEAST_CALL_S = 4e-3  # of a measurement on a CPU, for its clock to be read against
MOST_WEIGHTS = 16  # of one shape: more are no colder


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a shape, and what stands around them in a layer."""

    shape: Shape
    activation: Activation | None
    has_norm: bool
    tensors: tuple[Tensor, ...]


def weights_of(decoder: Decoder) -> list[Weights]:
    """What a model multiplies by, by shape."""
    found: dict[Shape, list[Tensor]] = {}
    names: dict[Shape, str] = {}
    for name, weight in decoder.tensors.items():
        shape = shape_of(name, tuple(weight.shape))
        if shape is not None and is_tunable(name, weight, decoder.spec):
            found.setdefault(shape, []).append(weight)
            names.setdefault(shape, name)
    activation = next((layer.mlp.activation for layer in decoder.spec.layers), None)
    return [
        Weights(
            shape,
            activation if shape.is_gated else None,
            not names[shape].endswith((".out", ".down")),
            tuple(tensors[:MOST_WEIGHTS]),
        )
        for shape, tensors in sorted(found.items())
    ]


def measure(weights: Weights, rows: Sequence[int] = ROWS) -> Iterator[Timing]:
    """By number of rows, seconds of one call of each implementation."""
    first = weights.tensors[0]
    call = _Call(weights, _cooler(weights.tensors))
    forms = list(zip(*(_forced(weight) for weight in weights.tensors), strict=True))
    generator = torch.Generator().manual_seed(0)
    for n_rows in rows:
        x_MK = torch.randn((n_rows, weights.shape.inputs), generator=generator).to(first.dtype).to(first.device)
        seconds: tuple[list[float], list[float], list[float]] = ([], [], [])
        served = [which for which in range(len(ALWAYS)) if _serves(first, which, n_rows)]
        with torch.inference_mode():
            for which in served:  # what is slow only once
                call(x_MK, forms[which][0])
            for _ in range(REPEATS):
                for which in served:
                    seconds[which].append(call.seconds(x_MK, forms[which]))
        yield Timing(n_rows, seconds)


def _forced(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weight, served by one implementation only, each in turn."""
    if isinstance(weight, PackedWeight):
        dense = weight.dense(weight.compute_dtype)
        return weight, TunedWeight(dense, None, ALWAYS[1]), TunedWeight(dense, None, ALWAYS[2])
    first, second, third = (TunedWeight(weight, None, cuts) for cuts in ALWAYS)
    return first, second, third


def _serves(weight: Tensor, which: int, n_rows: int) -> bool:
    """Whether the implementation is what runs, and not another in its place; rows one by one are tried for few."""
    if which == 0 and not isinstance(weight, PackedWeight):
        return n_rows <= MOST_SINGLE_ROWS
    return weight.device.type == "cpu" or which != 1 or n_rows <= MOST_FLAT_ROWS


class _Call:
    """A linear layer as a decoder calls it."""

    def __init__(self, weights: Weights, cool: Callable[[], None] | None) -> None:
        like = weights.tensors[0]
        norm_K = torch.ones(weights.shape.inputs, dtype=like.dtype, device=like.device)
        self._activation = weights.activation
        self._norm_K = norm_K if weights.has_norm else None
        self._device = like.device
        self._cool = cool

    def __call__(self, x_MK: Tensor, weight: Tensor) -> None:
        entry_linear(x_MK, weight, None, None, self._norm_K, 1e-6, activation=self._activation)

    def seconds(self, x_MK: Tensor, weights: Sequence[Tensor]) -> float:
        """Of one call, on average over the weights."""
        return self._on_gpu(x_MK, weights) if self._device.type == "cuda" else self._on_cpu(x_MK, weights)

    def _on_cpu(self, x_MK: Tensor, weights: Sequence[Tensor]) -> float:
        # of one thread the time it computed, which others on the machine do not lengthen
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        n_calls, began_s = 0, clock()
        while True:
            for weight in weights:
                self(x_MK, weight)
            n_calls += len(weights)
            if (passed_s := clock() - began_s) >= LEAST_CALL_S:
                return passed_s / n_calls

    def _on_gpu(self, x_MK: Tensor, weights: Sequence[Tensor]) -> float:
        """Between two events around each call; what cools the cache also hides how long the call took to launch."""
        pairs = []
        for weight in weights:
            if self._cool is not None:
                self._cool()
            pair = _event(), _event()
            pair[0].record()
            self(x_MK, weight)
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize(self._device)
        return float(sum(first.elapsed_time(last) for first, last in pairs)) / 1e3 / len(pairs)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _cooler(tensors: Sequence[Tensor]) -> Callable[[], None] | None:
    """On a GPU, something that leaves none of these in its cache."""
    device = tensors[0].device
    if device.type != "cuda":
        return None
    buffer = torch.empty(4 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8, device=device)

    def fill() -> None:
        buffer.zero_()

    return fill
