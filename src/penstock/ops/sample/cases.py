"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(9)

    def some(off: float, values: Tensor) -> Tensor:
        """Half of the rows use the filter."""
        return torch.where(torch.rand(len(values), generator=generator) < 0.5, values, off).to(device)

    for rows, vocab in ((1, 1), (1, 4096), (7, 63), (9, 65), (16, 700)):
        for step in (0.0, 0.5):  # 0.5: many equal logits
            logits = 4 * random_normal(generator, rows, vocab, dtype=torch.float32, device=device)
            logits = logits if step == 0 else (logits / step).round() * step
            temperature = some(0.0, 2 * torch.rand(rows, generator=generator) + 1e-3)
            top_k = some(0, torch.randint(1, vocab + 9, (rows,), generator=generator)).to(torch.int64)
            top_p = some(1.0, torch.rand(rows, generator=generator).clamp(min=1e-3))
            min_p = some(0.0, torch.rand(rows, generator=generator))
            seed = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator).to(device)
            index = torch.randint(0, 10_000, (rows,), generator=generator).to(device)
            for name, filters in {
                "all filters": (top_k, top_p, min_p),
                "no filter": (None, None, None),
                "top-k": (top_k, None, None),
                "top-p": (None, top_p, None),
                "min-p": (None, None, min_p),
            }.items():
                yield Case(f"{rows}x{vocab} step {step}, {name}", (logits, temperature, *filters, seed, index))
                half = logits.half(), temperature, *filters, seed, index
                yield Case(f"{rows}x{vocab} step {step}, {name}, float16", half)
