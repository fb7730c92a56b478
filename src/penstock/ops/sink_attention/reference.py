"""Shape letters: T tokens of the step, H query heads, D head dim, K sinks, h KV heads, G query heads that share a KV
head (H = h * G).
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.batch import SinkBatch


def sink_attention(
    q_THD: Tensor, kv: Tensor, sinks: SinkBatch, scale: float, soft_cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of each token over the sinks of its sequence that it reads; to be merged with that over its window.

    Args:
        q_THD: any float dtype; rotated by `sinks.positions_T`, for the keys were rotated by theirs.
        kv: [2, n_blocks, block_tokens, KV heads, head_dim] of one layer.
        scale, soft_cap: as in `penstock.ops.paged_attention`.
    Returns: (out_THD in the dtype of q, lse_TH float32, natural log); 0 and -inf for a token that reads no sink here.
        The arithmetic is float32.
    Source: StreamingLLM (arXiv 2309.17453), section 3.2: positions are those within the cache.
    """
    k_TKhD, v_TKhD = kv.flatten(1, 2)[:, sinks.slots_TK].float()
    q_ThGD = q_THD.float().view(len(q_THD), kv.shape[3], -1, q_THD.shape[2])
    scores_ThGK = torch.einsum("thgd,tkhd->thgk", q_ThGD, k_TKhD) * scale
    if soft_cap is not None:
        scores_ThGK = soft_cap * torch.tanh(scores_ThGK / soft_cap)
    scores_ThGK = scores_ThGK.masked_fill(~sinks.is_seen_TK[:, None, None], -torch.inf)
    lse_ThG = scores_ThGK.logsumexp(dim=-1)
    weights_ThGK = (scores_ThGK - lse_ThG.clamp(min=torch.finfo(torch.float32).min).unsqueeze(-1)).exp()
    out_ThGD = torch.einsum("thgk,tkhd->thgd", weights_ThGK, v_TKhD)
    return out_ThGD.flatten(1, 2).to(q_THD.dtype), lse_ThG.flatten(1, 2)
