"""Shared runs on the CPU: the queries of all members of a run are those of one sequence, for torch's flash kernel.

Shape letters: T tokens of the step, H query heads, D head dim, N members of a run, L its keys, K KV heads, G query
heads that share a KV head (H = K * G).
"""

from __future__ import annotations

from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.merge_attention import merge_attention
from penstock.ops.paged_attention import paged_attention
from penstock.ops.paged_attention.cpu import Kernel


def shared_attention(
    q_THD: Tensor, kv: Tensor, batch: SegmentBatch, scale: float, soft_cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.shared_attention`. Parts are of q's dtype, their log-sum-exp and their sum are float32."""
    shared = batch.shared
    assert shared is not None
    out_THD, lse_TH = paged_attention(q_THD, kv, batch, scale, None, soft_cap)
    kernel = Kernel(scale, soft_cap)
    for run in shared.runs_host:
        members_N = shared.members_M[run.first : run.stop]
        blocks = shared.tables[run.table_start : run.table_start + -(-run.keys // batch.block_tokens)]
        k_1KLD, v_1KLD = kv.index_select(1, blocks).flatten(1, 2)[:, None, : run.keys].transpose(2, 3).to(q_THD.dtype)
        # the heads that share a KV head are further queries of it: [1, K, N * G, D]
        q_NKGD = q_THD.index_select(0, members_N).view(len(members_N), kv.shape[3], -1, kv.shape[4])
        q_1KxD = q_NKGD.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        out_1KxD, lse_1Kx = kernel(q_1KxD, k_1KLD, v_1KLD)
        out_NHD = out_1KxD.view(-1, len(members_N), *q_NKGD.shape[2:]).transpose(0, 1).flatten(1, 2)
        lse_NH = lse_1Kx.view(-1, *q_NKGD.shape[:3:2]).transpose(0, 1).flatten(1, 2)
        before = out_THD.index_select(0, members_N), lse_TH.index_select(0, members_N)
        out_NHD, lse_NH = merge_attention(*before, out_NHD, lse_NH)
        out_THD.index_copy_(0, members_N, out_NHD)
        lse_TH.index_copy_(0, members_N, lse_NH)
    return out_THD, lse_TH
