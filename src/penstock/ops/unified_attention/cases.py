"""Inputs for `check_kernel`: of each shape, bounds that hold, that some rows leave, and that all do."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, make_batch, random_normal
from penstock.ops.unified_attention.fallbacks import Fallbacks
from penstock.ops.unified_max import UnifiedMax

KEYS = {"one key": (1,), "around a block": (1, 15, 16, 17), "long": (64, 300, 5), "padded": (5, 0, 33, 0)}
LIMITS = ((None, None), (33, 2.0), (16, None))  # windows and caps
HEADS = ((4, 2, 64), (3, 3, 72), (8, 1, 128))  # queries, KV, head dim
UNIFIED = {
    "safe": UnifiedMax(phi=1.0, low=-60.0, high=70.0),
    "some too high": UnifiedMax(phi=0.0, low=-60.0, high=2.0),
    "some too low": UnifiedMax(phi=3.0, low=-1.5, high=70.0),
    "strict": UnifiedMax(phi=0.0, low=-2.5, high=2.5, is_strict=True),
    "all far off": UnifiedMax(phi=-300.0, low=-60.0, high=70.0),
    "all far above": UnifiedMax(phi=300.0, low=-60.0, high=70.0),
}


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(16)
    for dtype, atol in ((torch.float32, 5e-6), (torch.bfloat16, 2e-2)):
        for name, kv_lens in KEYS.items():
            for heads, kv_heads, head_dim in HEADS:
                batch, n_blocks = make_batch([1] * len(kv_lens), kv_lens, 16, generator=generator, device=device)
                q = random_normal(generator, len(kv_lens), heads + 2, head_dim, dtype=dtype, device=device)[:, :heads]
                kv = random_normal(generator, 2, n_blocks, 16, kv_heads, head_dim, dtype=dtype, device=device)
                for window_tokens, soft_cap in LIMITS:
                    for kind, unified in UNIFIED.items():
                        case = f"{name}, {heads}/{kv_heads}x{head_dim} {dtype}, {window_tokens}, {soft_cap}, {kind}"
                        fallbacks = Fallbacks.on(device)
                        args = (q, kv, batch, head_dim**-0.5, unified, fallbacks, window_tokens, soft_cap)
                        yield Case(case, args, atol)
