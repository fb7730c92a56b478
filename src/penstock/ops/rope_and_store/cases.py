"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal

SHAPES = ((0, 4, 2, 64, 32), (1, 4, 2, 128, 64), (9, 3, 1, 72, 36), (20, 2, 2, 64, 16))  # tokens, Q, KV, dim, pairs


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(10)
    for dtype, atol in ((torch.float32, 5e-6), (torch.bfloat16, 4e-2)):
        for tokens, q_heads, kv_heads, head_dim, pairs in SHAPES:
            wide = random_normal(generator, tokens, q_heads + 2 * kv_heads + 1, head_dim, dtype=dtype, device=device)
            qkv = wide[:, : q_heads + 2 * kv_heads]
            norm = random_normal(generator, q_heads + kv_heads, head_dim, dtype=dtype, device=device)
            angles = 100 * random_normal(generator, tokens, pairs, dtype=torch.float32, device=device)
            kv = random_normal(generator, 2, 5, 8, kv_heads, head_dim, dtype=dtype, device=device)
            slots = torch.randperm(5 * 8, generator=generator)[:tokens].to(device)
            turned = angles.cos(), angles.sin()
            name = f"{tokens} tokens, {q_heads}/{kv_heads}x{head_dim}, {pairs} pairs, {dtype}"
            yield Case(name, (qkv, kv, slots, norm, 1e-6, False, *turned), atol)
            yield Case(f"{name}, centered", (qkv, kv, slots, norm, 1e-6, True, *turned), atol)
            yield Case(f"{name}, no norm", (qkv, kv, slots, None, 0.0, False, *turned), atol)
            yield Case(f"{name}, no positions", (qkv, kv, slots, norm, 1e-6), atol)
            yield Case(f"{name}, only stored", (qkv, kv.half(), slots), atol)
