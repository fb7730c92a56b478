"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(7)
    for tokens, n_experts, top_k in ((0, 4, 2), (1, 1, 1), (9, 8, 3), (5, 128, 8)):
        logits = random_normal(generator, tokens, n_experts, dtype=torch.float32, device=device)
        for is_normalized in (False, True):
            yield Case(f"{top_k} of {n_experts}, normalized {is_normalized}", (logits, top_k, is_normalized), 1e-6)
        if n_experts % 4 == 0:
            yield Case(f"{top_k} of {n_experts}, in 2 of 4 groups", (logits, top_k, False, 2.5, 4, 2), 1e-5)
