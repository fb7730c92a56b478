"""Shape letters: R rows, N rows that drew, S places of what leaves."""

from __future__ import annotations

from torch import Tensor


def advance_rows(
    positions_R: Tensor,
    last_R: Tensor,
    drawn_S: Tensor,
    rows_N: Tensor,
    positions_N: Tensor,
    ids_N: Tensor,
    scratch_row: int,
) -> None:
    """What each row drew is its next input, and leaves. In place.

    Args:
        positions_R, last_R: int64, where the next input of each row stands, and its id.
        drawn_S: int32, gets the ids in its first N places.
        rows_N, positions_N, ids_N: int64; the rows, where their new tokens stand, and what these are.
        scratch_row: a row that stays at position 0, and the only one that may be there several times; its last token is
            then that of any of the places.
    Source: the host sends nothing in a steady decode; see `runtime/rows.py`.
    """
    positions_R.index_copy_(0, rows_N, positions_N)
    positions_R[scratch_row].zero_()
    last_R.index_copy_(0, rows_N, ids_N)
    drawn_S[: len(ids_N)].copy_(ids_N)
