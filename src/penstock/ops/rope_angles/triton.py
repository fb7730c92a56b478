"""One pass over all elements. Shape letters: N elements of a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs

PROGRAM_ELEMENTS = 128


def rope_angles(positions_T: Tensor, inv_freq_R: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """See `reference.rope_angles`."""
    n_tokens, pairs = len(positions_T), len(inv_freq_R)
    shape, device = (n_tokens, pairs), positions_T.device
    cos_TR, sin_TR = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    if n_tokens:
        _rope_angles[(triton.cdiv(n_tokens * pairs, PROGRAM_ELEMENTS),)](
            positions_T,
            inv_freq_R,
            cos_TR,
            sin_TR,
            float(factor),
            n_tokens,
            PAIRS=pairs,
            PROGRAM_ELEMENTS=PROGRAM_ELEMENTS,
            **chain_options(device, n_tokens),
            num_warps=4,
        )
    return cos_TR, sin_TR


@triton.jit(do_not_specialize=["n_tokens"])
def _rope_angles(
    positions,
    inv_freq,
    cos,
    sin,
    factor,
    n_tokens,
    PAIRS: tl.constexpr,
    PROGRAM_ELEMENTS: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    at_N = tl.program_id(0).to(tl.int64) * PROGRAM_ELEMENTS + tl.arange(0, PROGRAM_ELEMENTS)
    is_here_N = at_N < n_tokens * PAIRS
    position_N = tl.load(positions + at_N // PAIRS, mask=is_here_N, other=0)
    inv_freq_N = tl.load(inv_freq + at_N % PAIRS, mask=is_here_N, other=0.0)
    angle_N = position_N.to(tl.float64) * inv_freq_N.to(tl.float64)
    tl.store(cos + at_N, tl.cos(angle_N).to(tl.float32) * factor, mask=is_here_N)
    tl.store(sin + at_N, tl.sin(angle_N).to(tl.float32) * factor, mask=is_here_N)
