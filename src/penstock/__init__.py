"""Penstock: an inference system for streaming generative models.

`LLM` and `AsyncLLM` need the extra `penstock[serve]`; importing this module does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.core.request import Objective, SamplingParams

if TYPE_CHECKING:
    from penstock.llm import LLM, AsyncLLM

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "Objective", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, so that a router or a simulator that imports penstock does not need what serving needs.
    if name in ("LLM", "AsyncLLM"):
        import penstock.llm

        return getattr(penstock.llm, name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
