"""Shape letters: T tokens of the step, H query heads, D head dim, N members of a run, L its keys, K KV heads, G query
heads that share a KV head (H = K * G).
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.merge_attention.reference import merge_attention
from penstock.ops.paged_attention.reference import paged_attention


def shared_attention(
    q_THD: Tensor, kv: Tensor, batch: SegmentBatch, scale: float, soft_cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of each segment over its shared runs and its own keys, in the paged pool.

    Args:
        q_THD: any float dtype.
        kv: [2, n_blocks, block_tokens, KV heads, head_dim] of one layer, holding this step's keys already.
        batch: with `shared`; its tables and kv_lens are those of each segment's own keys.
        scale, soft_cap: as in `penstock.ops.paged_attention`.
    Returns: as `penstock.ops.paged_attention` for whole tables. Parts and their sum are float32 here.
    Raises: ValueError if the query heads are no multiple of the KV heads.
    Source: Hydragen (arXiv 2402.05099), sections 3.1 and 3.2.
    """
    shared = batch.shared
    assert shared is not None
    out_THD, lse_TH = paged_attention(q_THD.float(), kv, batch, scale, None, soft_cap)
    for run in shared.runs_host:
        members_N = shared.members_M[run.first : run.stop]
        blocks = shared.tables[run.table_start : run.table_start + -(-run.keys // batch.block_tokens)]
        k_LKD, v_LKD = kv[:, blocks].flatten(1, 2)[:, : run.keys].float()
        q_NKGD = q_THD[members_N].float().view(len(members_N), kv.shape[3], -1, kv.shape[4])
        scores_NKGL = torch.einsum("nkgd,lkd->nkgl", q_NKGD, k_LKD) * scale
        if soft_cap is not None:
            scores_NKGL = soft_cap * torch.tanh(scores_NKGL / soft_cap)
        out_NKGD = torch.einsum("nkgl,lkd->nkgd", scores_NKGL.softmax(dim=-1), v_LKD)
        part = out_NKGD.flatten(1, 2), scores_NKGL.logsumexp(dim=-1).flatten(1, 2)
        out_THD[members_N], lse_TH[members_N] = merge_attention(out_THD[members_N], lse_TH[members_N], *part)
    return out_THD.to(q_THD.dtype), lse_TH
