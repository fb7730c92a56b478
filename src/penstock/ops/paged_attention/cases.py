"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, make_batch, random_normal

SHAPES = {  # tokens and keys of each segment
    "one token": ([1], [1]),
    "decode": ([1] * 6, [1, 15, 16, 17, 64, 300]),
    "decode, padded": ([1] * 4, [5, 0, 33, 0]),
    "whole prompts": ([1, 16, 17, 40], [1, 16, 17, 40]),
    "chunks with context": ([3, 16, 31], [50, 48, 32]),
    "mixed": ([1, 20, 1, 7, 1], [70, 20, 3, 90, 16]),
    "long prompts": ([1030, 1, 1024], [1030, 40, 1100]),
}
LIMITS = ((1, None), (16, None), (33, 2.0), (None, 5.0))  # windows and caps
HEADS = ((4, 2, 64), (3, 3, 72), (8, 1, 128))  # queries, KV, head dim


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(6)
    for dtype, atol in ((torch.float32, 5e-6), (torch.bfloat16, 2e-2)):
        for name, (q_lens, kv_lens) in SHAPES.items():
            for heads, kv_heads, head_dim in HEADS:
                batch, n_blocks = make_batch(q_lens, kv_lens, 16, generator=generator, device=device)
                q = random_normal(generator, sum(q_lens), heads + 2, head_dim, dtype=dtype, device=device)[:, :heads]
                kv = random_normal(generator, 2, n_blocks, 16, kv_heads, head_dim, dtype=dtype, device=device)
                args = q, kv, batch, head_dim**-0.5
                yield Case(f"{name}, {heads}/{kv_heads}x{head_dim} {dtype}", args, atol)
                for window_tokens, soft_cap in LIMITS:
                    case = f"{name}, {heads}/{kv_heads}x{head_dim} {dtype}, window {window_tokens}, cap {soft_cap}"
                    yield Case(case, (*args, window_tokens, soft_cap), atol)
