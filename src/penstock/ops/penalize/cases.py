"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(10)
    for rows, vocab in ((0, 5), (1, 1), (3, 64), (9, 1001)):
        logits = 4 * random_normal(generator, rows, vocab, dtype=torch.float32, device=device)
        tally = torch.randint(-9, 9, (rows, vocab), generator=generator).clamp(min=0).to(torch.int32).to(device)
        frequency, presence = (4 * torch.rand(2, rows, generator=generator) - 2).to(device)
        repetition = (0.5 + torch.rand(rows, generator=generator)).to(device)
        yield Case(f"{rows}x{vocab}", (logits, tally, repetition, frequency, presence), 1e-5)
        neutral = (torch.ones_like(repetition), torch.zeros_like(frequency), torch.zeros_like(presence))
        yield Case(f"{rows}x{vocab}, neutral", (logits, tally, *neutral))
