"""Kernels in Triton, which is there only beside a GPU: their files are imported when they are first called."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@cache
def has_triton() -> bool:
    """Whether the library is installed; torch for CUDA on Linux brings it along."""
    return importlib.util.find_spec("triton") is not None


def triton_kernel(reference: Callable[P, R], file: str = "triton") -> Callable[P, R]:
    """The function of the same name in `triton.py`, or another file, beside a reference."""
    name = reference.__name__

    @cache
    def load() -> Callable[P, R]:
        found: Callable[P, R] = getattr(importlib.import_module(f"penstock.ops.{name}.{file}"), name)
        return found

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return load()(*args, **kwargs)

    return call
