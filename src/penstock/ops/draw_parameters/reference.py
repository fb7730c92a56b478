"""Shape letters: R rows, N rows that draw, C columns of numbers, I columns of integers."""

from __future__ import annotations

from torch import Tensor


def draw_parameters(
    rows_N: Tensor, positions_N: Tensor, reals_RC: Tensor, ints_RI: Tensor, prompt_column: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters of the rows that draw, column by column, and which output of its sequence each draws.

    Args:
        rows_N: int64.
        positions_N: int64, where the token stands that each draws.
        reals_RC, ints_RI: float32, int64; parameters by row, in one piece each.
        prompt_column: the column of `ints_RI` that has the tokens of the prompt.
    Returns: (reals_CN, ints_IN, index_N), index int64.
    Source: output k of a sequence depends on its seed and k alone (see `sample`).
    """
    reals_CN = reals_RC.index_select(0, rows_N).t().contiguous()
    ints_IN = ints_RI.index_select(0, rows_N).t().contiguous()
    return reals_CN, ints_IN, positions_N - ints_IN[prompt_column]
