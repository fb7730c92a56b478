"""Paged attention on a GPU, mostly in two forms that read keys where they lie.

- One-token segments: a program takes the query heads that share a KV head (so keys are read once for all of them) over
  a part of the keys, and a second kernel joins the parts: split KV, as in Flash-Decoding. How many parts there are is
  fixed by the shape of the batch; how long they are follows from `kv_lens` on the device, so that a captured call
  serves every length.
- Longer segments: a program takes a tile of tokens of one query head over all keys that they see, as in
  FlashAttention-2 (arXiv 2307.08691). Which tile is whose is laid out on the host, once per step.
- Long prompts that begin with this step: cuDNN, see `whole_prompts.py`.

Nothing here waits for the device. Shape letters: S segments, H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import triton
from torch import Tensor

from penstock.ops.batch import SegmentBatch
from penstock.ops.chain import chain_options
from penstock.ops.paged_attention import reference, whole_prompts
from penstock.ops.paged_attention.triton_kernels import join_parts, long_segments, one_token_segments

MOST_HEAD_DIM = 256
LEAST_PART_KEYS = 64
WANTED_PROGRAMS = 132 * 4  # with more, joining the parts costs what reading them faster gains
MOST_PARTS = 64
TILE_TOKENS = 128


def paged_attention(
    q_THD: Tensor,
    kv: Tensor,
    batch: SegmentBatch,
    scale: float,
    window_tokens: int | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.paged_attention`. Sums are float32; products are of q's dtype."""
    kv_heads, head_dim = kv.shape[3:]
    if q_THD.shape[1] % kv_heads:
        raise ValueError(f"paged_attention: {q_THD.shape[1]} query heads cannot share {kv_heads} KV heads equally")
    if head_dim > MOST_HEAD_DIM or not kv.is_contiguous() or q_THD.stride(2) != 1:
        return reference.paged_attention(q_THD, kv, batch, scale, window_tokens, soft_cap)
    new = torch.empty if batch.placement is None else torch.zeros  # with one, some tokens are nobody's
    out_THD = new(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH = new(q_THD.shape[:2], dtype=torch.float32, device=q_THD.device)
    if not len(q_THD):
        return out_THD, lse_TH
    layout = _layout_of(q_THD, kv, batch, window_tokens, soft_cap)
    longest_keys = min(max(batch.kv_lens_host), window_tokens or max(batch.kv_lens_host))
    shape = _Shape(q_THD, kv, batch, scale, window_tokens, soft_cap)
    if layout.n_singles:
        shape.run_singles(layout, longest_keys, out_THD, lse_TH)
    if layout.n_tiles:
        shape.run_tiles(layout, out_THD, lse_TH)
    for s in layout.whole:
        first, stop = batch.q_starts_host[s : s + 2]
        blocks = batch.tables_SB[s, : triton.cdiv(batch.kv_lens_host[s], batch.block_tokens)]
        found = whole_prompts.attend(q_THD, first, stop - first, kv, blocks, scale)
        out_THD[first:stop], lse_TH[first:stop] = found
    return out_THD, lse_TH


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which segments are one token (None: all), which are whole prompts for cuDNN, and the tiles of the others."""

    n_singles: int
    singles: Tensor | None
    tile_segments: Tensor | None
    tile_firsts: Tensor | None
    whole: tuple[int, ...] = ()

    @property
    def n_tiles(self) -> int:
        return 0 if self.tile_segments is None else len(self.tile_segments)


def _layout_of(
    q_THD: Tensor, kv: Tensor, batch: SegmentBatch, window_tokens: int | None, soft_cap: float | None
) -> _Layout:
    n_tokens = tile_tokens(q_THD.shape[2], q_THD.dtype)
    placed = batch.placement
    if placed is not None:
        assert placed.tile_tokens == n_tokens, f"tiles are of {placed.tile_tokens} tokens; for these heads: {n_tokens}"
        return _Layout(len(placed.singles_S), placed.singles_S, placed.tile_segments_P, placed.tile_firsts_P)
    least_whole = whole_prompts.LEAST_TOKENS if whole_prompts.can_serve(q_THD, kv, window_tokens, soft_cap) else None
    return _lay_out(batch.q_starts_host, batch.kv_lens_host, n_tokens, least_whole, q_THD.device)


@lru_cache(maxsize=8)  # every layer of a step asks for the same
def _lay_out(
    q_starts: tuple[int, ...],
    kv_lens: tuple[int, ...],
    tile_tokens: int,
    least_whole: int | None,
    device: torch.device,
) -> _Layout:
    """Tiles with the longest reach come first."""
    lengths = [stop - start for start, stop in pairwise(q_starts)]
    singles = [s for s, n in enumerate(lengths) if n == 1]
    if len(singles) == len(lengths):
        return _Layout(len(singles), None, None, None)
    longer = [s for s, n in enumerate(lengths) if n > 1]
    whole = [s for s in longer if least_whole is not None and kv_lens[s] == lengths[s] >= least_whole]
    tiles = [(at, s) for s in longer if s not in whole for at in range(0, lengths[s], tile_tokens)]
    tiles.sort(reverse=True)
    packed = torch.tensor([*singles, *(s for _, s in tiles), *(at for at, _ in tiles)], dtype=torch.int32)
    sent = packed.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else packed
    singles_S, segments_P, firsts_P = torch.split(sent, [len(singles), len(tiles), len(tiles)])
    return _Layout(len(singles), singles_S, segments_P, firsts_P, tuple(whole))


def tile_tokens(head_dim: int, dtype: torch.dtype) -> int:
    """Of a tile: what fits the registers of a program."""
    return TILE_TOKENS if head_dim <= 128 and dtype.itemsize == 2 else TILE_TOKENS // 4


def part_count(n_programs: int, longest_keys: int) -> int:
    """Parts of the keys for each of `n_programs`: enough to fill the chip, none too short.

    A power of 2, for the kernels are compiled for it.
    """
    fill, useful = WANTED_PROGRAMS // n_programs, triton.cdiv(longest_keys, LEAST_PART_KEYS)
    wanted = max(1, min(fill, useful, MOST_PARTS))
    return 1 << (wanted.bit_length() - 1)


class _Shape:
    """What both forms are called with."""

    def __init__(
        self,
        q_THD: Tensor,
        kv: Tensor,
        batch: SegmentBatch,
        scale: float,
        window_tokens: int | None,
        soft_cap: float | None,
    ) -> None:
        self.q, self.kv, self.batch = q_THD, kv, batch
        self.heads, self.head_dim = q_THD.shape[1:]
        self.kv_heads = kv.shape[3]
        self.block_d = max(16, triton.next_power_of_2(self.head_dim))
        tables_SB = batch.tables_SB
        self.tables_SB = tables_SB if tables_SB.stride(-1) == 1 else tables_SB.contiguous()
        self.numbers = (
            float(scale),
            float(soft_cap or 0.0),
            q_THD.stride(0),
            q_THD.stride(1),
            kv.stride(0),
            self.tables_SB.stride(0),
            window_tokens or 0,
        )
        self.chain = chain_options(q_THD.device, len(q_THD))
        self.constants = {
            "has_window": window_tokens is not None,
            "has_cap": soft_cap is not None,
            "HEADS": self.heads,
            "KV_HEADS": self.kv_heads,
            "HEAD_DIM": self.head_dim,
            "BLOCK_TOKENS": batch.block_tokens,
            "BLOCK_D": self.block_d,
            **self.chain,
        }

    def run_singles(self, layout: _Layout, longest_keys: int, out_THD: Tensor, lse_TH: Tensor) -> None:
        n_parts = part_count(layout.n_singles * self.kv_heads, longest_keys)
        part_out, part_lse = out_THD, lse_TH
        if n_parts > 1:
            shape = layout.n_singles, self.heads, n_parts
            part_out = torch.empty((*shape, self.head_dim), dtype=torch.float32, device=self.q.device)
            part_lse = torch.empty(shape, dtype=torch.float32, device=self.q.device)
        is_wide = self.block_d > 128 or self.q.dtype.itemsize > 2
        common = (self.batch.kv_lens, self.batch.q_starts, layout.singles)
        one_token_segments[(layout.n_singles, self.kv_heads, n_parts)](
            self.q,
            self.kv,
            self.tables_SB,
            *common,
            part_out,
            part_lse,
            *self.numbers,
            **self.constants,
            N_PARTS=n_parts,
            LEAST_KEYS=LEAST_PART_KEYS,
            BLOCK_G=max(16, triton.next_power_of_2(self.heads // self.kv_heads)),
            BLOCK_N=32 if is_wide else 64,
            num_warps=4,
            num_stages=2 if is_wide else 3,
        )
        if n_parts > 1:
            join_parts[(layout.n_singles, self.heads)](
                part_out,
                part_lse,
                *common,
                out_THD,
                lse_TH,
                self.numbers[-1],
                has_window=self.constants["has_window"],
                HEADS=self.heads,
                HEAD_DIM=self.head_dim,
                BLOCK_D=self.block_d,
                N_PARTS=n_parts,
                LEAST_KEYS=LEAST_PART_KEYS,
                **self.chain,
                num_warps=4 if n_parts > 8 else 1,
            )

    def run_tiles(self, layout: _Layout, out_THD: Tensor, lse_TH: Tensor) -> None:
        n_tokens = tile_tokens(self.head_dim, self.q.dtype)
        is_large = n_tokens == TILE_TOKENS
        long_segments[(self.heads, layout.n_tiles)](
            self.q,
            self.kv,
            self.tables_SB,
            self.batch.kv_lens,
            self.batch.q_starts,
            layout.tile_segments,
            layout.tile_firsts,
            out_THD,
            lse_TH,
            *self.numbers,
            **self.constants,
            BLOCK_M=n_tokens,
            BLOCK_N=128 if is_large else 32,
            num_warps=8 if is_large else 4,
            num_stages=3 if is_large else 2,
        )
