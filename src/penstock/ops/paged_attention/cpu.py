"""Paged attention on the CPU, by torch's own flash kernel, which wants its keys in one piece.

One-token segments are batched: rows of like length are gathered into one padded block of keys, small enough to stay in
the cache between the gather and the kernel (measured on 64 rows of 512 keys: 6 ms in groups of 2 MiB, 26 ms in one
piece). Longer segments go one by one: a part that sees all of its context, a causal part over its own tokens, merged.
KV heads are never repeated: the query heads that share one ride as queries of a row, or see it through a stride of 0.

Shape letters: T tokens, H query heads, D head dim, K KV heads, G query heads that share one (H = K * G), R rows of a
group, B blocks of its longest row, L = B * block_tokens, N tokens of a longer segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.merge_attention import merge_attention

GROUP_BYTES = 2**21  # of gathered keys and values


def paged_attention(q_THD: Tensor, kv: Tensor, batch: SegmentBatch, scale: float) -> tuple[Tensor, Tensor]:
    """See `reference.paged_attention`. The arithmetic is that of the kernel: float32 sums of products of q's dtype."""
    kv_heads, head_dim = kv.shape[3:]
    if q_THD.shape[1] % kv_heads:
        raise ValueError(f"paged_attention: {q_THD.shape[1]} query heads cannot share {kv_heads} KV heads equally")
    out_THD = torch.zeros_like(q_THD)
    lse_TH = torch.full(q_THD.shape[:2], -torch.inf, dtype=torch.float32)
    group_keys = GROUP_BYTES // (2 * kv_heads * head_dim * kv.element_size())
    layout = _lay_out(batch.q_starts_host, batch.kv_lens_host, batch.block_tokens, group_keys)
    for group in layout.groups:
        out_RHD, lse_RH = _attend_group(q_THD.index_select(0, group.tokens_R), kv, batch.tables_SB, group, scale)
        out_THD.index_copy_(0, group.tokens_R, out_RHD)
        lse_TH.index_copy_(0, group.tokens_R, lse_RH)
    for s in layout.chunks:
        start, stop = batch.q_starts_host[s], batch.q_starts_host[s + 1]
        kv_len = batch.kv_lens_host[s]
        blocks = batch.tables_SB[s, : -(-kv_len // batch.block_tokens)]
        keys = kv.index_select(1, blocks).flatten(1, 2)[:, :kv_len].to(q_THD.dtype)
        out_THD[start:stop], lse_TH[start:stop] = _attend_chunk(q_THD[start:stop], keys, scale)
    return out_THD, lse_TH


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One-token segments that are computed together. hidden_M: places of R * L that no query sees."""

    rows_R: Tensor
    tokens_R: Tensor
    n_blocks: int
    hidden_M: Tensor
    mask_R11L: Tensor


@dataclass(frozen=True, slots=True)
class _Layout:
    groups: tuple[_Group, ...]
    chunks: tuple[int, ...]


@lru_cache(maxsize=4)  # every layer of a step asks for the same
def _lay_out(q_starts: tuple[int, ...], kv_lens: tuple[int, ...], block_tokens: int, group_keys: int) -> _Layout:
    """Group the one-token segments: no group gathers more than `group_keys` keys or pads a row to twice its length."""
    lengths = [stop - start for start, stop in pairwise(q_starts)]
    live = [s for s, (n_tokens, kv_len) in enumerate(zip(lengths, kv_lens, strict=True)) if n_tokens and kv_len]
    singles = sorted((s for s in live if lengths[s] == 1), key=lambda s: -kv_lens[s])
    groups: list[_Group] = []
    at = 0
    while at < len(singles):
        n_blocks = -(-kv_lens[singles[at]] // block_tokens)
        most_rows = max(1, group_keys // (n_blocks * block_tokens))
        rows = [s for s in singles[at : at + most_rows] if 2 * kv_lens[s] >= kv_lens[singles[at]]]
        groups.append(_group(rows, q_starts, kv_lens, n_blocks, n_blocks * block_tokens))
        at += len(rows)
    return _Layout(tuple(groups), tuple(s for s in live if lengths[s] > 1))


def _group(rows: Sequence[int], q_starts: Sequence[int], kv_lens: Sequence[int], n_blocks: int, n_keys: int) -> _Group:
    kv_lens_R1 = torch.tensor([kv_lens[s] for s in rows]).unsqueeze(1)
    is_hidden_RL = torch.arange(n_keys) >= kv_lens_R1
    return _Group(
        rows_R=torch.tensor(rows),
        tokens_R=torch.tensor([q_starts[s] for s in rows]),
        n_blocks=n_blocks,
        hidden_M=is_hidden_RL.flatten().nonzero().squeeze(1),
        mask_R11L=torch.zeros(len(rows), 1, 1, n_keys).masked_fill_(is_hidden_RL[:, None, None], -torch.inf),
    )


def _attend_group(q_RHD: Tensor, kv: Tensor, tables_SB: Tensor, group: _Group, scale: float) -> tuple[Tensor, Tensor]:
    kv_heads, head_dim = kv.shape[3:]
    n_rows = len(group.rows_R)
    blocks = tables_SB.index_select(0, group.rows_R)[:, : group.n_blocks].flatten()
    keys = kv.index_select(1, blocks).flatten(1, 2)
    # what lies there may be another sequence's, even nan, and nan times 0 is nan
    keys.index_fill_(1, group.hidden_M, 0.0)
    k_RKLD, v_RKLD = keys.view(2, n_rows, -1, kv_heads, head_dim).transpose(2, 3).to(q_RHD.dtype)
    q_RKGD = q_RHD.view(n_rows, kv_heads, -1, head_dim)
    out_RKGD, lse_RKG = _flash(q_RKGD, k_RKLD, v_RKLD, scale, mask=group.mask_R11L.to(q_RHD.dtype))
    return out_RKGD.flatten(1, 2), lse_RKG.flatten(1, 2)


def _attend_chunk(q_NHD: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """keys: [2, context and own tokens, K, D]."""
    n_tokens, kv_heads = len(q_NHD), keys.shape[2]
    context_tokens = keys.shape[1] - n_tokens
    q_KGND = q_NHD.view(n_tokens, kv_heads, -1, q_NHD.shape[2]).permute(1, 2, 0, 3)
    # the KV heads are the kernel's batch, and each is seen by G heads through a stride of 0
    k_KGLD, v_KGLD = keys.transpose(1, 2).unsqueeze(2).expand(-1, -1, q_KGND.shape[1], -1, -1)
    own = slice(context_tokens, None)
    out, lse = _by_token(*_flash(q_KGND, k_KGLD[:, :, own], v_KGLD[:, :, own], scale, is_causal=True))
    if context_tokens == 0:
        return out, lse
    seen = slice(0, context_tokens)
    return merge_attention(*_by_token(*_flash(q_KGND, k_KGLD[:, :, seen], v_KGLD[:, :, seen], scale)), out, lse)


def _by_token(out_KGND: Tensor, lse_KGN: Tensor) -> tuple[Tensor, Tensor]:
    return out_KGND.permute(2, 0, 1, 3).flatten(1, 2), lse_KGN.permute(2, 0, 1).flatten(1, 2)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, mask: Tensor | None = None, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """The kernel behind scaled_dot_product_attention, which would not give the log-sum-exp."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=is_causal, attn_mask=mask, scale=scale
    )
    return out, lse
