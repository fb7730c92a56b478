"""Paged attention on the CPU, by torch's own flash kernel, which wants its keys in one piece.

One-token segments are batched: rows of like length are gathered into one padded block of keys, small enough to stay in
the cache between the gather and the kernel (measured on 64 rows of 512 keys: 6 ms in groups of 2 MiB, 26 ms in one
piece). Longer segments go one by one: a part that sees all of its context, a causal part over its own tokens, merged.
With a window, only the blocks that it touches are gathered, and a longer segment goes in pieces of about a window.
KV heads are never repeated: the query heads that share one ride as queries of a row, or see it through a stride of 0.

Shape letters: T tokens, H query heads, D head dim, K KV heads, G query heads that share one (H = K * G), R rows of a
group, B blocks of its longest row, L = B * block_tokens, N tokens of a longer segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.merge_attention import merge_attention

GROUP_BYTES = 2**21  # of gathered keys and values
LEAST_PIECE_TOKENS = 64  # a narrow window must not make a call of every few tokens


def paged_attention(
    q_THD: Tensor,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    window_tokens: int | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.paged_attention`. The arithmetic is that of the kernel: float32 sums of products of q's dtype."""
    kv_heads, head_dim = kv.shape[3:]
    if q_THD.shape[1] % kv_heads:
        raise ValueError(f"paged_attention: {q_THD.shape[1]} query heads cannot share {kv_heads} KV heads equally")
    out_THD = torch.zeros_like(q_THD)
    lse_TH = torch.full(q_THD.shape[:2], -torch.inf, dtype=torch.float32)
    group_keys = GROUP_BYTES // (2 * kv_heads * head_dim * kv.element_size())
    kernel = Kernel(scale, soft_cap)
    layout = _lay_out(batch.q_starts_host, batch.kv_lens_host, batch.block_tokens, group_keys, window_tokens)
    for group in layout.groups:
        out_RHD, lse_RH = _attend_group(q_THD.index_select(0, group.tokens_R), kv, batch.tables_SB, group, kernel)
        out_THD.index_copy_(0, group.tokens_R, out_RHD)
        lse_TH.index_copy_(0, group.tokens_R, lse_RH)
    for piece in layout.pieces:
        blocks = batch.tables_SB[piece.segment, piece.first_block : -(-piece.stop_key // batch.block_tokens)]
        skip = piece.first_key - piece.first_block * batch.block_tokens
        keys = kv.index_select(1, blocks).flatten(1, 2)[:, skip : skip + piece.stop_key - piece.first_key]
        at = slice(piece.start, piece.stop)
        out_THD[at], lse_TH[at] = _attend_piece(q_THD[at], keys.to(q_THD.dtype), kernel, window_tokens)
    return out_THD, lse_TH


@dataclass(frozen=True, slots=True)
class Kernel:
    """Attention over keys in one piece; a query sees all, those that `mask` leaves, or those up to its own."""

    scale: float
    soft_cap: float | None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.soft_cap is not None:
            return self._capped(q, k, v, mask, is_causal, self.soft_cap)
        # the kernel behind scaled_dot_product_attention, which would not give the log-sum-exp
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, is_causal=is_causal, attn_mask=mask, scale=self.scale
        )
        return out, lse

    def _capped(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, soft_cap: float
    ) -> tuple[Tensor, Tensor]:
        """The flash kernel knows no cap: here all scores exist at once."""
        scores = (q.float() @ k.float().transpose(-1, -2)).mul_(self.scale / soft_cap).tanh_().mul_(soft_cap)
        if is_causal:
            scores += torch.full(scores.shape[-2:], -torch.inf).triu_(1)
        if mask is not None:
            scores += mask
        lse = scores.logsumexp(-1)
        return (scores.sub_(lse.unsqueeze(-1)).exp_() @ v.float()).to(q.dtype), lse


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One-token segments that are computed together. hidden_M: places of R * L that no query sees."""

    rows_R: Tensor
    tokens_R: Tensor
    entries_RB: Tensor
    hidden_M: Tensor
    mask_R11L: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Tokens [start, stop) of the step, of one segment, that see keys from [first_key, stop_key)."""

    segment: int
    start: int
    stop: int
    first_key: int
    stop_key: int
    first_block: int


@dataclass(frozen=True, slots=True)
class _Layout:
    groups: tuple[_Group, ...]
    pieces: tuple[_Piece, ...]


@lru_cache(maxsize=8)  # every layer of a step asks for the same, or for that of the other window
def _lay_out(
    q_starts: tuple[int, ...],
    kv_lens: tuple[int, ...],
    block_tokens: int,
    group_keys: int,
    window_tokens: int | None = None,
) -> _Layout:
    """Group the one-token segments: no group gathers more than `group_keys` keys or pads a row to twice its length."""
    lengths = [stop - start for start, stop in pairwise(q_starts)]
    live = [s for s, (n_tokens, kv_len) in enumerate(zip(lengths, kv_lens, strict=True)) if n_tokens and kv_len]
    seen = [(_first_seen(kv_len - 1, window_tokens), kv_len) for kv_len in kv_lens]  # keys, by the last token
    n_blocks = [-(-stop // block_tokens) - first // block_tokens for first, stop in seen]
    singles = sorted((s for s in live if lengths[s] == 1), key=lambda s: -n_blocks[s])
    groups: list[_Group] = []
    at = 0
    while at < len(singles):
        most_blocks = n_blocks[singles[at]]
        most_rows = max(1, group_keys // (most_blocks * block_tokens))
        rows = [s for s in singles[at : at + most_rows] if 2 * n_blocks[s] >= most_blocks]
        groups.append(_group(rows, [q_starts[s] for s in rows], [seen[s] for s in rows], block_tokens))
        at += len(rows)
    longer = (s for s in live if lengths[s] > 1)
    pieces = (_pieces(s, q_starts[s], q_starts[s + 1], kv_lens[s], block_tokens, window_tokens) for s in longer)
    return _Layout(tuple(groups), tuple(piece for some in pieces for piece in some))


def _first_seen(position: int, window_tokens: int | None) -> int:
    return 0 if window_tokens is None else max(0, position + 1 - window_tokens)


def _group(rows: Sequence[int], tokens: Sequence[int], seen: Sequence[tuple[int, int]], block_tokens: int) -> _Group:
    first_R1, stop_R1 = torch.tensor(seen).unsqueeze(2).unbind(1)
    first_block_R1, last_block_R1 = first_R1 // block_tokens, (stop_R1 - 1) // block_tokens
    n_blocks = int((last_block_R1 - first_block_R1).max()) + 1
    keys_RL = first_block_R1 * block_tokens + torch.arange(n_blocks * block_tokens)
    is_hidden_RL = (keys_RL < first_R1) | (keys_RL >= stop_R1)
    return _Group(
        rows_R=torch.tensor(rows),
        tokens_R=torch.tensor(tokens),
        entries_RB=torch.minimum(first_block_R1 + torch.arange(n_blocks), last_block_R1),
        hidden_M=is_hidden_RL.flatten().nonzero().squeeze(1),
        mask_R11L=torch.zeros(is_hidden_RL.shape).masked_fill_(is_hidden_RL, -torch.inf)[:, None, None],
    )


def _pieces(
    segment: int, start: int, stop: int, kv_len: int, block_tokens: int, window_tokens: int | None
) -> Iterator[_Piece]:
    """A segment in one piece, or in pieces for which few keys outside of a token's window are gathered."""
    whole = window_tokens is None or kv_len <= window_tokens
    step = stop - start if whole else max(window_tokens or 0, LEAST_PIECE_TOKENS)
    for at in range(start, stop, step):
        to = min(at + step, stop)
        first_key = _first_seen(kv_len - stop + at, window_tokens)
        yield _Piece(
            segment=segment,
            start=at,
            stop=to,
            first_key=first_key,
            stop_key=kv_len - stop + to,
            first_block=first_key // block_tokens,
        )


def _attend_group(q_RHD: Tensor, kv: Tensor, tables_SB: Tensor, group: _Group, kernel: Kernel) -> tuple[Tensor, Tensor]:
    kv_heads, head_dim = kv.shape[3:]
    n_rows = len(group.rows_R)
    blocks = tables_SB[group.rows_R.unsqueeze(1), group.entries_RB].flatten()
    keys = kv.index_select(1, blocks).flatten(1, 2)
    # what lies there may be another sequence's, even nan, and nan times 0 is nan
    keys.index_fill_(1, group.hidden_M, 0.0)
    k_RKLD, v_RKLD = keys.view(2, n_rows, -1, kv_heads, head_dim).transpose(2, 3).to(q_RHD.dtype)
    q_RKGD = q_RHD.view(n_rows, kv_heads, -1, head_dim)
    out_RKGD, lse_RKG = kernel(q_RKGD, k_RKLD, v_RKLD, mask=group.mask_R11L.to(q_RHD.dtype))
    return out_RKGD.flatten(1, 2), lse_RKG.flatten(1, 2)


def _attend_piece(q_NHD: Tensor, keys: Tensor, kernel: Kernel, window_tokens: int | None) -> tuple[Tensor, Tensor]:
    """keys: [2, context and own tokens, K, D]."""
    n_tokens, n_keys, kv_heads = len(q_NHD), keys.shape[1], keys.shape[2]
    context_tokens = n_keys - n_tokens
    q_KGND = q_NHD.view(n_tokens, kv_heads, -1, q_NHD.shape[2]).permute(1, 2, 0, 3)
    # the KV heads are the kernel's batch, and each is seen by G heads through a stride of 0
    k_KGLD, v_KGLD = keys.transpose(1, 2).unsqueeze(2).expand(-1, -1, q_KGND.shape[1], -1, -1)
    if window_tokens is not None and n_keys > window_tokens:
        mask_11NL = _window_mask(n_tokens, n_keys, window_tokens).to(q_NHD.dtype)
        return _by_token(*kernel(q_KGND, k_KGLD, v_KGLD, mask=mask_11NL))
    own = slice(context_tokens, None)
    out, lse = _by_token(*kernel(q_KGND, k_KGLD[:, :, own], v_KGLD[:, :, own], is_causal=True))
    if context_tokens == 0:
        return out, lse
    seen = slice(0, context_tokens)
    return merge_attention(*_by_token(*kernel(q_KGND, k_KGLD[:, :, seen], v_KGLD[:, :, seen])), out, lse)


@lru_cache(maxsize=8)
def _window_mask(n_tokens: int, n_keys: int, window_tokens: int) -> Tensor:
    """0 where the i-th of the last `n_tokens` of `n_keys` sees a key, -inf elsewhere."""
    keys_L = torch.arange(n_keys)
    last_seen_N1 = keys_L[n_keys - n_tokens :].unsqueeze(1)
    is_hidden_NL = (keys_L > last_seen_N1) | (keys_L <= last_seen_N1 - window_tokens)
    return torch.zeros(n_tokens, n_keys).masked_fill_(is_hidden_NL, -torch.inf)[None, None]


def _by_token(out_KGND: Tensor, lse_KGN: Tensor) -> tuple[Tensor, Tensor]:
    return out_KGND.permute(2, 0, 1, 3).flatten(1, 2), lse_KGN.permute(2, 0, 1).flatten(1, 2)
