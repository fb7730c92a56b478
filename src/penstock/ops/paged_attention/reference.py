"""Shape letters: T tokens of the step, H query heads, D head dim, N tokens of one segment, L its keys, K KV heads,
G query heads that share a KV head (H = K * G).
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch


def paged_attention(
    q_THD: Tensor,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    window_tokens: int | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of each segment over its own keys in the paged pool.

    Token i of a segment with N tokens and L keys (kv_lens) sees keys 0 .. L - N + i, or the last ones of these.

    Args:
        q_THD: any float dtype.
        kv: [2, n_blocks, block_tokens, KV heads, head_dim] of one layer, holding this step's keys already.
        batch: whose block tables say where the keys lie.
        scale: of the scores, usually head_dim ** -0.5.
        window_tokens: keys that a token sees at most, its own included; None: all.
        soft_cap: scaled scores go through soft_cap * tanh(score / soft_cap), so none is beyond it; None: as they are.
    Returns: (out_THD in the dtype of q, lse_TH float32, natural log). A token without a key (kv_lens 0 pads a batch)
        gets 0 and -inf. The arithmetic is float32.
    Raises: ValueError if the query heads are no multiple of the KV heads.
    Source: PagedAttention (arXiv 2309.06180); windows as in Mistral 7B (arXiv 2310.06825), caps as in Gemma 2
        (arXiv 2408.00118).
    """
    kv_heads = kv.shape[3]
    if q_THD.shape[1] % kv_heads:
        raise ValueError(f"paged_attention: {q_THD.shape[1]} query heads cannot share {kv_heads} KV heads equally")
    out_THD = torch.zeros_like(q_THD)
    lse_TH = torch.full(q_THD.shape[:2], -torch.inf, dtype=torch.float32, device=q_THD.device)
    for s, kv_len in enumerate(batch.kv_lens_host):
        start, stop = batch.q_starts_host[s], batch.q_starts_host[s + 1]
        if kv_len == 0 or start == stop:
            continue
        blocks = batch.tables_SB[s, : -(-kv_len // batch.block_tokens)]
        k_LKD, v_LKD = kv[:, blocks].flatten(1, 2)[:, :kv_len].float()
        out_THD[start:stop], lse_TH[start:stop] = _attend(
            q_THD[start:stop].float(), k_LKD, v_LKD, scale, window_tokens, soft_cap
        )
    return out_THD, lse_TH


def _attend(
    q_NHD: Tensor, k_LKD: Tensor, v_LKD: Tensor, scale: float, window_tokens: int | None, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    n_tokens, n_keys = q_NHD.shape[0], k_LKD.shape[0]
    q_NKGD = q_NHD.reshape(n_tokens, k_LKD.shape[1], -1, k_LKD.shape[2])
    scores_KGNL = torch.einsum("nkgd,lkd->kgnl", q_NKGD, k_LKD) * scale
    if soft_cap is not None:
        scores_KGNL = soft_cap * torch.tanh(scores_KGNL / soft_cap)
    keys_L = torch.arange(n_keys, device=q_NHD.device)
    last_seen_N1 = keys_L[n_keys - n_tokens :].unsqueeze(1)
    is_hidden_NL = keys_L > last_seen_N1
    if window_tokens is not None:
        is_hidden_NL |= keys_L <= last_seen_N1 - window_tokens
    scores_KGNL = scores_KGNL.masked_fill(is_hidden_NL, -torch.inf)
    lse_KGN = scores_KGNL.logsumexp(dim=-1)
    weights_KGNL = (scores_KGNL - lse_KGN.unsqueeze(-1)).exp()
    out_NKGD = torch.einsum("kgnl,lkd->nkgd", weights_KGNL, v_LKD)
    return out_NKGD.flatten(1, 2), lse_KGN.flatten(0, 1).T
