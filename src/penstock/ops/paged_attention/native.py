"""One-token segments over their paged keys where they lie: nothing is gathered, K and V are read once per KV head.

Longer segments, capped scores, and heads of other sizes go to torch's kernel (`cpu.py`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.native import core, is_served
from penstock.ops.paged_attention import cpu

LANES = 32  # a head is whole vectors
MOST_HEAD_DIM = 256
MOST_SHARING = 32


def paged_attention(
    q_THD: Tensor,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    window_tokens: int | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.paged_attention`."""
    library = core()
    heads, head_dim = q_THD.shape[1:]
    kv_heads = kv.shape[3]
    singles_R3, other_kv_lens = _split(batch.q_starts_host, batch.kv_lens_host)
    is_ours = library is not None and soft_cap is None and len(singles_R3) > 0 and heads % kv_heads == 0
    if library is None or not is_ours or not _fits(q_THD, kv):
        return cpu.paged_attention(q_THD, kv, batch, scale, window_tokens, soft_cap)
    if any(other_kv_lens):
        others = replace(batch, kv_lens_host=other_kv_lens)
        out_THD, lse_TH = cpu.paged_attention(q_THD, kv, others, scale, window_tokens)
    else:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
        lse_TH = torch.empty(q_THD.shape[:2], dtype=torch.float32)
        if len(singles_R3) < len(q_THD):  # what pads the batch
            out_THD.zero_()
            lse_TH.fill_(-torch.inf)
    tables_SB = batch.tables_SB if batch.tables_SB.stride(-1) == 1 else batch.tables_SB.contiguous()
    library.attend(
        q_THD.dtype is torch.bfloat16,
        q_THD.data_ptr(),
        q_THD.stride(0),
        kv.data_ptr(),
        kv.shape[1],
        tables_SB.data_ptr(),
        tables_SB.stride(0),
        singles_R3.data_ptr(),
        len(singles_R3),
        batch.block_tokens,
        heads,
        kv_heads,
        head_dim,
        scale,
        0 if window_tokens is None else window_tokens,
        out_THD.data_ptr(),
        lse_TH.data_ptr(),
        torch.get_num_threads(),
    )
    return out_THD, lse_TH


def _fits(q_THD: Tensor, kv: Tensor) -> bool:
    heads, head_dim = q_THD.shape[1:]
    return (
        head_dim % LANES == 0
        and head_dim <= MOST_HEAD_DIM
        and heads // kv.shape[3] <= MOST_SHARING
        and is_served(q_THD, kv)
        and q_THD.stride(1) == head_dim
        and kv.is_contiguous()
    )


@lru_cache(maxsize=4)  # every layer of a step asks for the same
def _split(q_starts: tuple[int, ...], kv_lens: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """(segment, token, keys) of the segments that are one token, longest first; keys of the others, 0 for these."""
    is_single = [stop - start == 1 for start, stop in pairwise(q_starts)]
    live = [(s, q_starts[s], n) for s, n in enumerate(kv_lens) if is_single[s] and n]
    others = tuple(0 if single else n for single, n in zip(is_single, kv_lens, strict=True))
    return torch.tensor(sorted(live, key=lambda row: -row[2]), dtype=torch.int64).view(-1, 3), others
