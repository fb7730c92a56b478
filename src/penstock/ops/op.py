"""One kernel under one name: its truth in plain torch, and a faster file for a type of device.

Which file runs follows from the device of the first argument, and on a CPU from whether the process has loaded the C++
kernels; a call has no mode to be in. `Op.on` says what that is, for the log line at start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Generic, ParamSpec, TypeVar

import torch

from penstock.ops import native
from penstock.ops.lazy import has_triton

P = ParamSpec("P")
R = TypeVar("R")


class Op(Generic[P, R]):
    """`reference` serves every device that has no file of its own.

    by_device: `cpu=cpu.rms_norm`, keyed by `torch.device.type`. `native=native.rms_norm` goes before `cpu` once the C++
    kernels are loaded; for arguments that they do not serve it calls what would have run. `cuda` is in Triton, and the
    reference serves a GPU without that library. Every implementation takes and returns what the reference does; the
    sweep in the tests holds them to that.
    """

    def __init__(self, name: str, reference: Callable[P, R], **by_device: Callable[P, R]) -> None:
        self.name = name
        self.__doc__ = reference.__doc__
        self._reference = reference
        self._by_device = by_device

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, torch.Tensor), f"{self.name}: the first argument says which device computes"
        return self._by_device.get(self.on(first.device), self._reference)(*args, **kwargs)

    @property
    def implementations(self) -> Mapping[str, Callable[P, R]]:
        """By name; "reference" comes first."""
        return MappingProxyType({"reference": self._reference, **self._by_device})

    def on(self, device: torch.device) -> str:
        """Name of the implementation that serves tensors on `device`.

        Tensors without memory stand for those of a GPU: with them kernels are compiled before there is anything to
        compute (`runtime.compile_ahead`).
        """
        if device.type == "meta":
            return "cuda" if "cuda" in self._by_device else "reference"
        if device.type == "cpu" and "native" in self._by_device and native.core(self.name) is not None:
            return "native"
        if device.type == "cuda" and not has_triton():
            return "reference"
        return device.type if device.type in self._by_device else "reference"
