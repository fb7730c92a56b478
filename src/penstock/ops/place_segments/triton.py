"""One launch: the first programs take tokens, the others entries of a segment's table.

Numbers change from step to step, and arrays may be parts of a packed one: nothing of them is specialized. What is not
there is of length 0, so that a state group has one kernel for all of its steps.

Shape letters: T tokens of a program, B entries of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.ops.place_segments.reference import Placed

PROGRAM_TOKENS, PROGRAM_ENTRIES = 128, 512


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
    """See `reference.place_segments`."""
    assert tables_RW.is_contiguous(), "tables lie in one piece"
    n_tokens, n_segments, device = len(rows_T), len(rows_S), rows_S.device

    def ints(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    placed = Placed(
        positions_T=ints(n_tokens),
        slots_T=ints(n_tokens),
        kv_lens_S=ints(n_segments, dtype=torch.int32),
        tables_SB=ints(n_segments, n_entries, dtype=torch.int32),
        ends_S=ints(n_segments),
        last_S=ints(n_segments),
    )
    token_programs = triton.cdiv(n_tokens, PROGRAM_TOKENS)
    entry_programs = max(1, triton.cdiv(n_entries, PROGRAM_ENTRIES))
    n_programs = token_programs + n_segments * entry_programs
    if n_programs:
        _place_segments[(n_programs,)](
            positions_R,
            last_R,
            tables_RW,
            rows_S,
            lens_S,
            rows_T,
            rows_T if offsets_T is None else offsets_T,
            rows_S if first_F is None else first_F,
            *placed,
            n_tokens,
            0 if offsets_T is None else n_tokens,
            0 if first_F is None else len(first_F),
            tables_RW.shape[1],
            n_entries,
            token_programs,
            entry_programs,
            BLOCK_TOKENS=block_tokens,
            WINDOW_TOKENS=window_tokens or 0,
            PROGRAM_TOKENS=PROGRAM_TOKENS,
            PROGRAM_ENTRIES=PROGRAM_ENTRIES,
            num_warps=4,
        )
    return placed


UNSPECIALIZED = (
    "rows", "lens", "token_rows", "offsets", "firsts", "n_tokens", "n_offsets", "n_firsts", "width", "n_entries",
    "token_programs", "entry_programs",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _place_segments(
    row_positions,
    row_last,
    row_tables,
    rows,
    lens,
    token_rows,
    offsets,
    firsts,
    positions,
    slots,
    kv_lens,
    tables,
    ends,
    last,
    n_tokens,
    n_offsets,
    n_firsts,
    width,
    n_entries,
    token_programs,
    entry_programs,
    BLOCK_TOKENS: tl.constexpr,
    WINDOW_TOKENS: tl.constexpr,
    PROGRAM_TOKENS: tl.constexpr,
    PROGRAM_ENTRIES: tl.constexpr,
):
    program = tl.program_id(0)
    if program < token_programs:
        at_T = program * PROGRAM_TOKENS + tl.arange(0, PROGRAM_TOKENS)
        is_token_T = at_T < n_tokens
        row_T = tl.load(token_rows + at_T, mask=is_token_T, other=0)
        position_T = tl.load(row_positions + row_T, mask=is_token_T, other=0)
        position_T += tl.load(offsets + at_T, mask=at_T < n_offsets, other=0)
        entry_T = row_T * width + position_T // BLOCK_TOKENS
        block_T = tl.load(row_tables + entry_T, mask=is_token_T, other=0).to(tl.int64)
        tl.store(positions + at_T, position_T, mask=is_token_T)
        tl.store(slots + at_T, block_T * BLOCK_TOKENS + position_T % BLOCK_TOKENS, mask=is_token_T)
    else:
        segment = (program - token_programs) // entry_programs
        piece = (program - token_programs) % entry_programs
        row = tl.load(rows + segment)
        start = tl.load(row_positions + row)
        if WINDOW_TOKENS > 0:
            first = tl.maximum(start - (WINDOW_TOKENS - 1), 0) // BLOCK_TOKENS
        else:
            first = tl.load(firsts + segment, mask=segment < n_firsts, other=0)
        if piece == 0:
            end = start + tl.load(lens + segment)
            tl.store(ends + segment, end)
            tl.store(kv_lens + segment, (end - first * BLOCK_TOKENS).to(tl.int32))
            tl.store(last + segment, tl.load(row_last + row))
        at_B = piece * PROGRAM_ENTRIES + tl.arange(0, PROGRAM_ENTRIES)
        is_entry_B = at_B < n_entries
        entry_B = tl.minimum(first + at_B, width - 1)
        block_B = tl.load(row_tables + row * width + entry_B, mask=is_entry_B, other=0)
        tl.store(tables + segment.to(tl.int64) * n_entries + at_B, block_B, mask=is_entry_B)
