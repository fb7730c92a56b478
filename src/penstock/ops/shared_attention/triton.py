"""Shared runs on a GPU: one kernel over all runs of all levels, and one that joins what they and the own keys gave.

A program takes a piece of a run's members, with query heads that share a KV head beside them, over a part of the run's
keys: products of a matrix with a matrix. How many programs there are follows from the room for pieces, not from the
runs: those without a piece end at once, so a captured call serves whatever is shared later. Nothing waits for the
device.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from penstock.ops.batch import PIECE_MEMBERS, SegmentBatch
from penstock.ops.chain import chain_options
from penstock.ops.paged_attention import paged_attention
from penstock.ops.shared_attention import reference
from penstock.ops.shared_attention.triton_kernels import join_runs, shared_runs

MOST_HEAD_DIM = 256
WANTED_PROGRAMS = 132 * 2
LEAST_PART_KEYS = 256
MOST_PARTS = 16


def shared_attention(
    q_THD: Tensor, kv: Tensor, batch: SegmentBatch, scale: float, soft_cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.shared_attention`. Own parts are of q's dtype, those of runs and all sums float32."""
    shared = batch.shared
    assert shared is not None
    heads, head_dim = q_THD.shape[1:]
    kv_heads = kv.shape[3]
    if head_dim > MOST_HEAD_DIM or not kv.is_contiguous() or q_THD.stride(2) != 1:
        return reference.shared_attention(q_THD, kv, batch, scale, soft_cap)
    out_THD, lse_TH = paged_attention(q_THD, kv, batch, scale, None, soft_cap)
    share = heads // kv_heads
    block_d = max(16, triton.next_power_of_2(head_dim))
    is_wide = block_d > 128 or q_THD.dtype.itemsize > 2
    heads_each = min(triton.next_power_of_2(share), 1 if is_wide else 128 // PIECE_MEMBERS)
    n_pieces, n_members = len(shared.piece_runs_P), len(shared.members_M)
    levels, n_rows = shared.places_LT.shape
    grid_heads = kv_heads * triton.cdiv(share, heads_each)
    n_parts = _part_count(grid_heads * triton.cdiv(n_rows, PIECE_MEMBERS), shared.most_keys)
    part_out = torch.empty((n_members, heads, n_parts, head_dim), dtype=torch.float32, device=q_THD.device)
    part_lse = torch.empty((n_members, heads, n_parts), dtype=torch.float32, device=q_THD.device)
    chain = chain_options(q_THD.device, len(q_THD))
    shared_runs[(n_pieces, grid_heads, n_parts)](
        q_THD,
        kv,
        shared.tables,
        shared.table_starts_R,
        shared.keys_R,
        shared.member_starts,
        shared.members_M,
        shared.piece_runs_P,
        shared.piece_firsts_P,
        part_out,
        part_lse,
        float(scale),
        float(soft_cap or 0.0),
        q_THD.stride(0),
        q_THD.stride(1),
        kv.stride(0),
        has_cap=soft_cap is not None,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=batch.block_tokens,
        BLOCK_D=block_d,
        N_PARTS=n_parts,
        MEMBERS=PIECE_MEMBERS,
        HEADS_EACH=heads_each,
        BLOCK_N=32 if is_wide else 64,
        **chain,
        num_warps=8 if PIECE_MEMBERS * heads_each > 64 else 4,
        num_stages=2 if is_wide else 3,
    )
    join_runs[(n_rows, heads)](
        part_out,
        part_lse,
        shared.places_LT,
        out_THD,
        lse_TH,
        n_rows,
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        N_PARTS=n_parts,
        LEVELS=levels,
        **chain,
        num_warps=1,
    )
    return out_THD, lse_TH


def _part_count(n_programs: int, most_keys: int) -> int:
    """Parts of the keys of a run: enough to fill the chip if all rows share one, none too short. A power of 2."""
    wanted = max(1, min(WANTED_PROGRAMS // n_programs, most_keys // LEAST_PART_KEYS, MOST_PARTS))
    return 1 << (wanted.bit_length() - 1)
