"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case, random_normal


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(16)
    for rows, n_reals, n_ints in ((0, 3, 4), (1, 3, 4), (33, 3, 4), (40, 5, 1)):
        reals_RC = random_normal(generator, 50, n_reals, dtype=torch.float32, device=device)
        ints_RI = torch.randint(-(2**63), 2**63 - 1, (50, n_ints), generator=generator).to(device)
        chosen = torch.randint(0, 50, (2 * rows + 1,), generator=generator).to(device)
        rows_N, positions_N = chosen[1 : rows + 1], chosen[rows + 1 :]  # not aligned
        yield Case(f"{rows} rows, {n_reals} + {n_ints}", (rows_N, positions_N, reals_RC, ints_RI, n_ints // 2))
