"""Which implementations of an op take tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penstock.ops.op import Op


def on_cpu(op: Op[..., Any]) -> Mapping[str, Callable[..., Any]]:
    """All but those for another device; `test_triton.py` and the sweep look at these."""
    return {name: run for name, run in op.implementations.items() if name not in ("cuda", "halving")}
