"""One program for some rows and all of their columns. Shape letters: N rows of a program, C columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs

PROGRAM_ROWS = 32


def draw_parameters(
    rows_N: Tensor, positions_N: Tensor, reals_RC: Tensor, ints_RI: Tensor, prompt_column: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.draw_parameters`."""
    assert all(by_row.is_contiguous() for by_row in (reals_RC, ints_RI)), "parameters lie in one piece"
    n_rows, device = len(rows_N), rows_N.device
    n_reals, n_ints = reals_RC.shape[1], ints_RI.shape[1]
    reals_CN = torch.empty((n_reals, n_rows), dtype=reals_RC.dtype, device=device)
    ints_IN = torch.empty((n_ints, n_rows), dtype=ints_RI.dtype, device=device)
    index_N = torch.empty(n_rows, dtype=torch.int64, device=device)
    if n_rows:
        _draw_parameters[(triton.cdiv(n_rows, PROGRAM_ROWS),)](
            rows_N,
            positions_N,
            reals_RC,
            ints_RI,
            reals_CN,
            ints_IN,
            index_N,
            n_rows,
            N_REALS=n_reals,
            N_INTS=n_ints,
            COLUMNS=triton.next_power_of_2(max(n_reals, n_ints)),
            PROMPT_COLUMN=int(prompt_column),
            PROGRAM_ROWS=PROGRAM_ROWS,
            **chain_options(device, n_rows),
            num_warps=1,
        )
    return reals_CN, ints_IN, index_N


@triton.jit(do_not_specialize=["rows", "positions", "n_rows"])
def _draw_parameters(
    rows,
    positions,
    row_reals,
    row_ints,
    reals,
    ints,
    index,
    n_rows,
    N_REALS: tl.constexpr,
    N_INTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PROMPT_COLUMN: tl.constexpr,
    PROGRAM_ROWS: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    at_N = tl.program_id(0) * PROGRAM_ROWS + tl.arange(0, PROGRAM_ROWS)
    is_row_N = at_N < n_rows
    row_N = tl.load(rows + at_N, mask=is_row_N, other=0)
    at_C = tl.arange(0, COLUMNS)
    is_real_CN = (at_C < N_REALS)[:, None] & is_row_N[None, :]
    real_CN = tl.load(row_reals + row_N[None, :] * N_REALS + at_C[:, None], mask=is_real_CN, other=0.0)
    tl.store(reals + at_C[:, None] * n_rows + at_N[None, :], real_CN, mask=is_real_CN)
    is_int_CN = (at_C < N_INTS)[:, None] & is_row_N[None, :]
    int_CN = tl.load(row_ints + row_N[None, :] * N_INTS + at_C[:, None], mask=is_int_CN, other=0)
    tl.store(ints + at_C[:, None] * n_rows + at_N[None, :], int_CN, mask=is_int_CN)
    prompt_N = tl.load(row_ints + row_N * N_INTS + PROMPT_COLUMN, mask=is_row_N, other=0)
    tl.store(index + at_N, tl.load(positions + at_N, mask=is_row_N, other=0) - prompt_N, mask=is_row_N)
