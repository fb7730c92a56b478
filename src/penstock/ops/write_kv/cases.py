"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(4)
    for dtype, kv_dtype in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16),
    ):
        for tokens in (0, 1, 20):
            kv = random_normal(generator, 2, 5, 8, 2, 16, dtype=kv_dtype, device=device)
            qkv = random_normal(generator, tokens, 8, 16, dtype=dtype, device=device)
            slots = torch.randperm(5 * 8, generator=generator)[:tokens].to(device)
            yield Case(f"{tokens} tokens, {dtype} into {kv_dtype}", (qkv[:, 4:6], qkv[:, 6:], kv, slots))
