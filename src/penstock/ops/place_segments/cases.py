"""Inputs for `check_kernel`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from penstock.ops.check import Case

WIDTH, BLOCK = 700, 4  # longer tables than one program copies


def cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(15)
    decode, mixed = ((4,), (0, 2, 4, 4, 4)), ((1, 3, 0), (2, 1, 300, 1))
    positions = (0, 9, 2797, 130, 0)
    for rows in decode:
        yield _case(f"one token each of {len(rows)}", rows, (1,) * len(rows), positions, generator, device)
    for start in (1, 2):
        lens = mixed[1][start : start + 2]
        yield _case(f"chunks from {start}", mixed[0][:2], lens, positions, generator, device)
    for window in (1, 9, 10, 4000):
        name = f"a window of {window}"
        yield _case(name, decode[1], (1,) * 5, positions, generator, device, window=window, n_entries=5)
        yield _case(f"{name}, chunks", mixed[0], (3, 1, 5), positions, generator, device, window=window)
    yield _case("shared", decode[1], (1,) * 5, positions, generator, device, first=(0, 690, 0, 0, 0))
    yield _case("shared beside a chunk", mixed[0], (1, 1, 7), positions, generator, device, first=(2, 30))
    yield _case("no segment", (), (), positions, generator, device)


def _case(
    name: str,
    rows: Sequence[int],
    lens: Sequence[int],
    positions: Sequence[int],
    generator: torch.Generator,
    device: str,
    *,
    window: int | None = None,
    first: Sequence[int] | None = None,
    n_entries: int = WIDTH,
) -> Case:
    """Parts of packed arrays, so that what they point at is not aligned."""
    tables_RW = torch.randint(0, 10_000, (len(positions), WIDTH), generator=generator, dtype=torch.int32).to(device)
    last_R = torch.randint(0, 10_000, (len(positions),), generator=generator).to(device)
    is_decode = set(lens) <= {1}
    rows_T = [row for row, n in zip(rows, lens, strict=True) for _ in range(n)]
    offsets = [at for n in lens for at in range(n)]
    packed = [[0], rows, lens, rows_T, offsets, first or ()]
    parts = torch.split(
        torch.tensor([number for part in packed for number in part], device=device), [len(part) for part in packed]
    )
    _, rows_S, lens_S, of_tokens, offsets_T, first_F = parts
    return Case(
        name,
        (
            torch.tensor(positions, device=device), last_R, tables_RW, rows_S, lens_S, of_tokens,
            None if is_decode else offsets_T, None if first is None else first_F, BLOCK, window, n_entries,
        ),
    )  # fmt: skip
