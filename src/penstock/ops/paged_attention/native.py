"""Attention over paged keys where they lie: nothing is gathered; see `cpp/attention.h`.

What a token gets depends on its query and its keys alone, bit for bit: not on the batch, nor on how its prompt was cut.
Heads of sizes that the kernel does not know go to torch's kernel (`cpu.py`).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch, SharedRuns
from penstock.ops.native import Unified, core, is_served
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
    found = attend(q_THD, kv, batch, scale, window_tokens, soft_cap, None)
    return cpu.paged_attention(q_THD, kv, batch, scale, window_tokens, soft_cap) if found is None else found


def attend(
    q_THD: Tensor,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    window_tokens: int | None,
    soft_cap: float | None,
    unified: Unified | None,
    shared: SharedRuns | None = None,
) -> tuple[Tensor, Tensor] | None:
    """As `paged_attention`; None for what the kernel does not serve.

    unified: a maximum fixed beforehand. shared: runs of keys that come before each segment's own.
    """
    library = core("paged_attention")
    heads, head_dim = q_THD.shape[1:]
    kv_heads = kv.shape[3]
    if library is None or not is_served_heads(heads, kv_heads, head_dim) or not _fits(q_THD, kv):
        return None
    runs_R5, run_tables, members_M = (None,) * 3 if shared is None else levelled(shared)
    segments_S4, n_tokens = live_segments(batch.q_starts_host, batch.kv_lens_host)
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
    lse_TH = torch.empty(q_THD.shape[:2], dtype=torch.float32)
    if n_tokens < len(q_THD):  # what pads the batch
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
        segments_S4.data_ptr(),
        len(segments_S4),
        batch.block_tokens,
        heads,
        kv_heads,
        head_dim,
        scale,
        0 if window_tokens is None else window_tokens,
        0.0 if soft_cap is None else soft_cap,
        None if runs_R5 is None else runs_R5.data_ptr(),
        0 if runs_R5 is None else len(runs_R5),
        None if run_tables is None else run_tables.data_ptr(),
        None if members_M is None else members_M.data_ptr(),
        len(q_THD),
        out_THD.data_ptr(),
        lse_TH.data_ptr(),
        None if unified is None else ctypes.addressof(unified),
        torch.get_num_threads(),
    )
    return out_THD, lse_TH


def is_served_heads(heads: int, kv_heads: int, head_dim: int) -> bool:
    """The kernel knows heads of this shape."""
    is_whole = heads % kv_heads == 0 and head_dim % LANES == 0
    return is_whole and head_dim <= MOST_HEAD_DIM and heads // kv_heads <= MOST_SHARING


def _fits(q_THD: Tensor, kv: Tensor) -> bool:
    return is_served(q_THD, kv) and q_THD.stride(1) == q_THD.shape[2] and kv.is_contiguous()


@lru_cache(maxsize=4)  # every layer of a step asks for the same
def levelled(shared: SharedRuns) -> tuple[Tensor, Tensor, Tensor]:
    """(first entry of the tables, keys, first member, stop, level) of each run, by level; and what they point into."""
    ordered = sorted(shared.runs_host, key=lambda run: run.level)
    runs_R5 = torch.tensor([(run.table_start, run.keys, run.first, run.stop, run.level) for run in ordered])
    return runs_R5, shared.tables, shared.members_M


@lru_cache(maxsize=4)  # every layer of a step asks for the same
def live_segments(q_starts: tuple[int, ...], kv_lens: tuple[int, ...]) -> tuple[Tensor, int]:
    """(row of the tables, first token, tokens, keys) of each segment that has keys, longest first, and their tokens."""
    live = [
        (s, start, stop - start, n_keys)
        for s, ((start, stop), n_keys) in enumerate(zip(pairwise(q_starts), kv_lens, strict=True))
        if n_keys and stop > start
    ]
    live.sort(key=lambda segment: -segment[3])
    return torch.tensor(live, dtype=torch.int64).view(-1, 4), sum(segment[2] for segment in live)
