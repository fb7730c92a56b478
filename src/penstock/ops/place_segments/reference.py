"""Shape letters: R rows, W entries of a row's table, S segments, T tokens, F segments that may begin later in their
table, B entries of the tables of a step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor


class Placed(NamedTuple):
    """The segments of a step in one state group.

    positions_T, slots_T (int64), kv_lens_S, tables_SB (int32): see `SegmentBatch`. ends_S: int64, the position behind
    each segment. last_S: int64, the last token that its row drew.
    """

    positions_T: Tensor
    slots_T: Tensor
    kv_lens_S: Tensor
    tables_SB: Tensor
    ends_S: Tensor
    last_S: Tensor


def place_segments(
    positions_R: Tensor,
    last_R: Tensor,
    tables_RW: Tensor,
    rows_S: Tensor,
    lens_S: Tensor,
    rows_T: Tensor,
    offsets_T: Tensor | None,
    first_F: Tensor | None,
    block_tokens: int,
    window_tokens: int | None,
    n_entries: int,
) -> Placed:
    """Where the tokens of each segment stand, and the blocks that hold what they write and read.

    Args:
        positions_R, last_R: int64, where the next input of each row stands, and its id if it was drawn.
        tables_RW: int32, blocks of each row in order, in one piece.
        rows_S, lens_S: int64, the row of each segment and its tokens.
        rows_T, offsets_T: int64, the row of each token, and its place in its segment; None: each segment is one token.
        first_F: int64, entries of the table that the first F segments do not read, for a group without a window; None:
            all read from the beginning.
        window_tokens: tables begin with the first block that the window of a segment's first token reaches.
        n_entries: B; beyond the end of a row's table its last entry is repeated.
    Returns: see `Placed`; kv_lens count from the beginning of the tables.
    Source: block tables as in PagedAttention (arXiv 2309.06180); windows as in Mistral 7B (arXiv 2310.06825).
    """
    size, width = block_tokens, tables_RW.shape[1]
    starts_S = positions_R.index_select(0, rows_S)
    positions_T = starts_S if offsets_T is None else positions_R.index_select(0, rows_T) + offsets_T
    entries_T = rows_T * width + positions_T // size
    slots_T = tables_RW.view(-1).index_select(0, entries_T).to(torch.int64) * size + positions_T % size
    ends_S = starts_S + lens_S
    kv_lens_S = ends_S
    first_S = None
    if window_tokens is not None:
        first_S = (starts_S - (window_tokens - 1)).clamp_(min=0) // size
    elif first_F is not None:
        first_S = F.pad(first_F, (0, len(rows_S) - len(first_F)))
    if first_S is None and n_entries <= width:
        tables_SB = tables_RW[:, :n_entries].index_select(0, rows_S)
    else:
        columns_B = torch.arange(n_entries, device=rows_S.device)
        columns_SB = columns_B if first_S is None else first_S.unsqueeze(1) + columns_B
        tables_SB = tables_RW.view(-1)[rows_S.unsqueeze(1) * width + columns_SB.clamp(max=width - 1)]
    if first_S is not None:
        kv_lens_S = kv_lens_S - first_S * size
    return Placed(
        positions_T=positions_T,
        slots_T=slots_T,
        kv_lens_S=kv_lens_S.to(torch.int32),
        tables_SB=tables_SB,
        ends_S=ends_S,
        last_S=last_R.index_select(0, rows_S),
    )
