"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.batch import SinkBatch
from penstock.ops.check import Case, random_normal

HEADS = ((4, 2, 64), (3, 3, 72), (8, 1, 128))  # queries, KV, head dim


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(12)
    for dtype, atol in ((torch.float32, 5e-6), (torch.bfloat16, 2e-2)):
        for heads, kv_heads, head_dim in HEADS:
            for tokens, n_sinks in ((1, 1), (5, 4), (33, 17)):
                q = random_normal(generator, tokens, heads, head_dim, dtype=dtype, device=device)
                kv = random_normal(generator, 2, 5, 16, kv_heads, head_dim, dtype=dtype, device=device)
                is_seen = torch.rand(tokens, n_sinks, generator=generator) < 0.7
                is_seen[tokens // 2] = False
                sinks = SinkBatch(
                    slots_TK=torch.randint(0, 5 * 16, (tokens, n_sinks), generator=generator).to(device),
                    is_seen_TK=is_seen.to(device),
                    positions_T=torch.arange(tokens, device=device),
                )
                for cap in (None, 5.0):
                    name = f"{tokens} tokens, {n_sinks} sinks, {heads}/{kv_heads}x{head_dim} {dtype}, cap {cap}"
                    yield Case(name, (q, kv, sinks, head_dim**-0.5, cap), atol)
