"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.ops.check import Case

ROWS, SCRATCH = 200, 199


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(17)
    for rows, n_scratch in ((0, 0), (1, 0), (0, 1), (9, 3), (150, 20)):
        members = [*torch.randperm(SCRATCH, generator=generator)[:rows].tolist(), *[SCRATCH] * n_scratch]
        n = len(members)
        numbers = torch.randint(0, 100_000, (2 * n + 2 * ROWS,), generator=generator)
        numbers[n + rows : 2 * n] = 7  # any of the scratch row's ids may stay: here they are one
        chosen = torch.cat((torch.tensor([0, *members]), numbers)).to(device)  # not aligned
        rows_N, positions_N, ids_N, positions_R, last_R = torch.split(chosen[1:], [n, n, n, ROWS, ROWS])
        positions_R, last_R = positions_R.clone(), last_R.clone()
        positions_R[SCRATCH] = 0
        drawn_S = torch.full((ROWS,), -1, dtype=torch.int32, device=device)
        name = f"{rows} rows, scratch {n_scratch} times"
        yield Case(name, (positions_R, last_R, drawn_S, rows_N, positions_N, ids_N, SCRATCH))
