"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from penstock.ops.batch import SegmentBatch
from penstock.ops.check import Case, make_batch, random_normal
from penstock.ops.shared_attention.packing import PlacedRun, share

# tokens and own keys of each segment; (blocks, members, level) of each run
SHAPES: dict[str, tuple[list[int], list[int], list[tuple[int, tuple[int, ...], int]]]] = {
    "one run": ([1] * 3, [1, 16, 40], [(1, (0, 1, 2), 0)]),
    "not everybody": ([1] * 5, [3, 20, 1, 64, 17], [(9, (1, 3, 4), 0)]),
    "nested": (
        [1] * 6,
        [5, 9, 1, 30, 2, 16],
        [(5, (0, 1, 2, 4, 5), 0), (2, (4, 1), 1), (7, (0, 5), 1), (3, (5, 0), 2)],
    ),
    "many members": ([1] * 70, [1 + 3 * k % 40 for k in range(70)], [(6, tuple(range(69, 0, -1)), 0)]),
    "beside chunks": ([1, 1, 1, 7, 20], [4, 17, 2, 30, 20], [(4, (0, 2), 0)]),
    "a long run": ([1] * 4, [8, 8, 8, 8], [(70, (0, 1, 2, 3), 0)]),
}
HEADS = ((4, 2, 64), (3, 3, 72), (14, 2, 32), (8, 1, 128))  # queries, KV, head dim


def shared_batch(
    q_lens: list[int],
    kv_lens: list[int],
    runs: list[tuple[int, tuple[int, ...], int]],
    block_tokens: int,
    generator: torch.Generator,
    device: str,
) -> tuple[SegmentBatch, int]:
    """A batch whose runs have scattered blocks of their own, and the number of blocks of the pool."""
    n_shared = sum(n_blocks for n_blocks, _, _ in runs)
    batch, n_blocks = make_batch(
        q_lens, kv_lens, block_tokens, generator=generator, spare_blocks=1 + n_shared, device=device
    )
    used = set(batch.tables_SB.flatten().tolist())
    free = torch.tensor([block for block in range(n_blocks) if block not in used], dtype=torch.int32)
    free = free[torch.randperm(len(free), generator=generator)]
    placed, at = [], 0
    for n, members, level in runs:
        placed.append(PlacedRun(at, n * block_tokens, members, level))
        at += n
    return replace(batch, shared=share(placed, free.to(device), sum(q_lens))), n_blocks


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(16)
    for dtype, atol in ((torch.float32, 5e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        for name, shape in SHAPES.items():
            for heads, kv_heads, head_dim in HEADS:
                batch, n_blocks = shared_batch(*shape, 16, generator, device)
                n_tokens = batch.q_starts_host[-1]
                q = random_normal(generator, n_tokens, heads + 2, head_dim, dtype=dtype, device=device)[:, :heads]
                kv = random_normal(generator, 2, n_blocks, 16, kv_heads, head_dim, dtype=dtype, device=device)
                for soft_cap in (None, 5.0):
                    case = f"{name}, {heads}/{kv_heads}x{head_dim} {dtype}, cap {soft_cap}"
                    yield Case(case, (q, kv, batch, head_dim**-0.5, soft_cap), atol)
