"""Driving a decoder as the runtime would: rows with block tables, scattered over one pool."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from penstock.models.decoder import Decoder
from penstock.ops.batch import SegmentBatch


@dataclass
class Row:
    ids: list[int]
    done: int = 0
    blocks: list[int] = field(default_factory=list)


class PagedRun:
    """Sequences of one decoder. The pool starts as nan: whoever reads what nobody wrote is seen."""

    def __init__(self, decoder: Decoder, sequences: list[list[int]], block_tokens: int, seed: int = 0) -> None:
        self.decoder = decoder
        self.block_tokens = block_tokens
        self.rows = [Row(ids) for ids in sequences]
        n_blocks = sum(-(-len(ids) // block_tokens) for ids in sequences) + 2
        self.free = list(range(n_blocks))
        random.Random(seed).shuffle(self.free)
        spec = decoder.spec.layers[0].attention
        shape = (2, n_blocks, block_tokens, spec.kv_heads, spec.head_dim)
        self.kv = [torch.full(shape, torch.nan, dtype=decoder.dtype) for _ in decoder.spec.layers]

    def batch(self, take: dict[int, int]) -> SegmentBatch:
        """The next `take[row]` tokens of each row."""
        starts, positions, slots, kv_lens = [0], [], [], []
        for index, n_tokens in take.items():
            row = self.rows[index]
            stop = row.done + n_tokens
            while len(row.blocks) * self.block_tokens < stop:
                row.blocks.append(self.free.pop())
            for position in range(row.done, stop):
                positions.append(position)
                block, offset = divmod(position, self.block_tokens)
                slots.append(row.blocks[block] * self.block_tokens + offset)
            starts.append(starts[-1] + n_tokens)
            kv_lens.append(stop)
        tables = torch.zeros(len(take), max(len(self.rows[index].blocks) for index in take), dtype=torch.int32)
        for at, index in enumerate(take):
            tables[at, : len(self.rows[index].blocks)] = torch.tensor(self.rows[index].blocks)
        return SegmentBatch(
            positions_T=torch.tensor(positions),
            slots_T=torch.tensor(slots),
            q_starts=torch.tensor(starts),
            kv_lens=torch.tensor(kv_lens),
            tables_SB=tables,
            q_starts_host=tuple(starts),
            kv_lens_host=tuple(kv_lens),
            block_tokens=self.block_tokens,
        )

    def embed(self, take: dict[int, int]) -> torch.Tensor:
        ids = [i for index, n in take.items() for i in self.rows[index].ids[self.rows[index].done :][:n]]
        return self.decoder.embed(torch.tensor(ids))

    def advance(self, take: dict[int, int]) -> None:
        for index, n_tokens in take.items():
            self.rows[index].done += n_tokens

    @torch.inference_mode()
    def step(self, take: dict[int, int]) -> dict[int, torch.Tensor]:
        """Logits of every token of the step, by row."""
        n_layers = len(self.decoder.spec.layers)
        x = self.decoder.run_layers(self.embed(take), self.batch(take), self.kv, 0, n_layers)
        self.advance(take)
        return dict(zip(take, self.decoder.logits(x).split(list(take.values())), strict=True))
