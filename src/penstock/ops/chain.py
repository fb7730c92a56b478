"""Kernels that start while the one before them ends (programmatic dependent launch, from compute capability 9 on).

A chained kernel waits for its inputs where it first reads them, then says that the next one may be brought in; what it
reads before that (weights) no other kernel writes. Every chained kernel waits before it ends, so "the kernel before me
is done" means that all before it are.

Steps of one token are chained, others are not. Measured on an H200: Qwen3-0.6B decodes 1 sequence in 0.81 ms instead of
0.87; a Llama of 8 billion decodes 8 in 6.0 ms instead of 4.8, for what waits takes places from what works.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

FIRST_CAPABILITY = (9, 0)


@cache
def _can_chain(device: torch.device) -> bool:
    if device.type == "meta":  # stands for the GPU that kernels are compiled for
        return int(triton.runtime.driver.active.get_current_target().arch) >= 10 * FIRST_CAPABILITY[0]
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY


def chain_options(device: torch.device, n_tokens: int) -> dict[str, bool]:
    """How to launch a kernel that has an `is_chained`, in a step of so many tokens."""
    is_chained = n_tokens == 1 and _can_chain(device)
    return {"is_chained": True, "launch_pdl": True} if is_chained else {"is_chained": False}


@triton.jit
def let_next_start(is_chained: tl.constexpr):
    """Once all programs have said so, the next kernel is brought in."""
    if is_chained:
        cuda.gdc_launch_dependents()


@triton.jit
def wait_for_inputs(is_chained: tl.constexpr):
    """Nothing that an earlier kernel writes may be read before this."""
    if is_chained:
        cuda.gdc_wait()
