"""Shape letters: T tokens of the step, one per segment, H query heads, D head dim, K KV heads, G query heads that share
one (H = K * G), L keys of a segment, P parts of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.unified_attention.fallbacks import Fallbacks
from penstock.ops.unified_max import UnifiedMax

PART_KEYS = 64


def unified_attention(
    q_THD: Tensor,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    unified: UnifiedMax,
    fallbacks: Fallbacks,
    window_tokens: int | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """What `paged_attention` gives for segments of one token, without comparing parts of the keys.

    Args:
        q_THD, kv, batch, scale, window_tokens, soft_cap: see `paged_attention`; every segment has one token.
        unified: the maximum, and what it is safe for. A row (a query head of a token) that leaves the bounds is
            computed again with its own maximum, so the result is that of `paged_attention` for any scores.
        fallbacks: on the device of q; rows that were computed again, and all rows with keys, are added.
    Returns: (out_THD in the dtype of q, lse_TH float32), see `paged_attention`.
    Raises: ValueError if a segment has more than one token.
    Source: asynchronized softmax with a unified maximum, FlashDecoding++ (arXiv 2311.01282, section 3).
    """
    if not batch.is_decode:
        raise ValueError("unified_attention: a segment has more than one token; paged_attention serves those")
    out_THD = torch.zeros_like(q_THD)
    lse_TH = torch.full(q_THD.shape[:2], -torch.inf, dtype=torch.float32, device=q_THD.device)
    for s, kv_len in enumerate(batch.kv_lens_host):
        if kv_len == 0:
            continue
        blocks = batch.tables_SB[s, : -(-kv_len // batch.block_tokens)]
        first = 0 if window_tokens is None else max(0, kv_len - window_tokens)
        k_LKD, v_LKD = kv[:, blocks].flatten(1, 2)[:, first:kv_len].float()
        scores_HL = scores(q_THD[s], k_LKD, scale, soft_cap)
        num_PHD, den_PH, bad_PH = partials(scores_HL, v_LKD, unified)
        out_HD, lse_H, is_bad_H = combine(num_PHD, den_PH, bad_PH, unified)
        exact_HD, exact_lse_H = _exact(scores_HL, v_LKD)
        out_THD[s] = torch.where(is_bad_H[:, None], exact_HD, out_HD)
        lse_TH[s] = torch.where(is_bad_H, exact_lse_H, lse_H)
        fallbacks.counts_2[0] += is_bad_H.sum()
        fallbacks.counts_2[1] += len(is_bad_H)
    return out_THD, lse_TH


def scores(q_HD: Tensor, k_LKD: Tensor, scale: float, soft_cap: float | None = None) -> Tensor:
    """Scaled scores of one token: float32 [H, L]."""
    q_KGD = q_HD.float().view(k_LKD.shape[1], -1, q_HD.shape[1])
    scores_HL = torch.einsum("kgd,lkd->kgl", q_KGD, k_LKD).flatten(0, 1) * scale
    return scores_HL if soft_cap is None else soft_cap * torch.tanh(scores_HL / soft_cap)


# Flags of a part: a score is not below the upper bound; one is above the lower bound; one is not; there is no key.
TOO_HIGH, ANY_ABOVE, ANY_BELOW = 1, 2, 4


def partials(
    scores_HL: Tensor, v_LKD: Tensor, unified: UnifiedMax, part_keys: int = PART_KEYS
) -> tuple[Tensor, Tensor, Tensor]:
    """(num_PHD, den_PH, flags_PH uint8) of parts of the keys; no part knows of another. Hidden scores are -inf."""
    found = [
        _partial(scores_HL[:, at : at + part_keys], v_LKD[at : at + part_keys], unified)
        for at in range(0, max(1, scores_HL.shape[1]), part_keys)
    ]
    num, den, flags = zip(*found, strict=True)
    return torch.stack(num), torch.stack(den), torch.stack(flags)


def _partial(scores_HL: Tensor, v_LKD: Tensor, unified: UnifiedMax) -> tuple[Tensor, Tensor, Tensor]:
    above_HL = scores_HL - unified.phi
    weights_HL = above_HL.exp()
    weights_KGL = weights_HL.view(v_LKD.shape[1], len(weights_HL) // v_LKD.shape[1], v_LKD.shape[0])
    num_HD = torch.einsum("kgl,lkd->kgd", weights_KGL, v_LKD).flatten(0, 1)
    is_seen_HL = scores_HL != -torch.inf
    flags_H = torch.zeros(len(scores_HL), dtype=torch.uint8, device=scores_HL.device)
    for flag, is_so_HL in (
        (TOO_HIGH, ~(above_HL < unified.high)),
        (ANY_ABOVE, above_HL > unified.low),
        (ANY_BELOW, is_seen_HL & ~(above_HL > unified.low)),
    ):
        flags_H |= flag * is_so_HL.any(dim=1).to(torch.uint8)
    return num_HD, weights_HL.sum(dim=1), flags_H


def combine(num_PHD: Tensor, den_PH: Tensor, flags_PH: Tensor, unified: UnifiedMax) -> tuple[Tensor, Tensor, Tensor]:
    """(out_HD, lse_H, is_bad_H): plain sums over the parts. Bad rows hold nothing of use."""
    den_H = den_PH.sum(dim=0)
    flags_H = torch.zeros_like(flags_PH[0])
    for part_H in flags_PH:
        flags_H |= part_H
    is_bad_H = (flags_H & TOO_HIGH) > 0
    if unified.is_strict:
        is_bad_H |= (flags_H & ANY_BELOW) > 0
    else:
        is_bad_H |= ((flags_H & ANY_ABOVE) == 0) & ((flags_H & ANY_BELOW) > 0)
    is_empty_H = den_H == 0
    out_HD = num_PHD.sum(dim=0) / torch.where(is_empty_H, 1.0, den_H)[:, None]
    return out_HD, unified.phi + den_H.log(), is_bad_H


def _exact(scores_HL: Tensor, v_LKD: Tensor) -> tuple[Tensor, Tensor]:
    lse_H = scores_HL.logsumexp(dim=1)
    weights_HL = (scores_HL - lse_H[:, None]).exp()
    weights_KGL = weights_HL.view(v_LKD.shape[1], -1, v_LKD.shape[0])
    return torch.einsum("kgl,lkd->kgd", weights_KGL, v_LKD).flatten(0, 1), lse_H
