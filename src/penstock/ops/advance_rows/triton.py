"""One program for some rows. Shape letters: N rows of a program."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.chain import chain_options, let_next_start, wait_for_inputs

PROGRAM_ROWS = 128


def advance_rows(
    positions_R: Tensor,
    last_R: Tensor,
    drawn_S: Tensor,
    rows_N: Tensor,
    positions_N: Tensor,
    ids_N: Tensor,
    scratch_row: int,
) -> None:
    """See `reference.advance_rows`."""
    n_rows = len(rows_N)
    if n_rows:
        _advance_rows[(triton.cdiv(n_rows, PROGRAM_ROWS),)](
            positions_R,
            last_R,
            drawn_S,
            rows_N,
            positions_N,
            ids_N,
            n_rows,
            scratch_row,
            PROGRAM_ROWS=PROGRAM_ROWS,
            **chain_options(positions_R.device, n_rows),
            num_warps=1,
        )


@triton.jit(do_not_specialize=["drawn", "rows", "positions", "ids", "n_rows", "scratch_row"])
def _advance_rows(
    row_positions,
    row_last,
    drawn,
    rows,
    positions,
    ids,
    n_rows,
    scratch_row,
    PROGRAM_ROWS: tl.constexpr,
    is_chained: tl.constexpr,
):
    wait_for_inputs(is_chained)
    let_next_start(is_chained)
    at_N = tl.program_id(0) * PROGRAM_ROWS + tl.arange(0, PROGRAM_ROWS)
    is_row_N = at_N < n_rows
    row_N = tl.load(rows + at_N, mask=is_row_N, other=0)
    id_N = tl.load(ids + at_N, mask=is_row_N, other=0)
    position_N = tl.load(positions + at_N, mask=is_row_N, other=0)
    tl.store(row_positions + row_N, tl.where(row_N == scratch_row, 0, position_N), mask=is_row_N)
    tl.store(row_last + row_N, id_N, mask=is_row_N)
    tl.store(drawn + at_N, id_N.to(tl.int32), mask=is_row_N)
