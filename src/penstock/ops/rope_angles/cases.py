"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case


def cases(device: str) -> Iterator[Case]:
    for tokens, pairs, factor in ((0, 32, 1.0), (1, 64, 1.0), (3, 36, 1.0), (9, 48, 1.19), (40, 16, 0.5)):
        positions_T = (torch.arange(tokens) ** 5 + 100_003 * torch.arange(tokens)).to(device)
        inv_freq_R = (1e6 ** (-torch.arange(pairs) / pairs)).to(device)
        yield Case(f"{tokens} tokens, {pairs} pairs, factor {factor}", (positions_T, inv_freq_R, factor), 2e-7)
