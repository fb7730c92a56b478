"""The batch buffers by row: what the device remembers of each running sequence between steps.

Theory. A row's *position* is where its next input token stands, and `last` is that token when it was sampled. A
decode step reads both on the device, and sampling writes both there, so a steady decode sends nothing. The host
advances a copy of the positions by the same rule (it needs them for shapes) and never reads the device.
A chunk moves the row's position to its start. The output index of a draw is position + 1 - prompt tokens, so it is
not stored. Block tables have one entry per `block_tokens` tokens of the sequence, in every state group; where a group
keeps a window, the entries behind it point at blocks that others may have by now, and are not read.

Shape letters: R rows, W entries of a block table.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.core.executor import StateSpec
from penstock.core.plan import Plan, RowBlocks, RowStart
from penstock.runtime.transfer import Ints, Mirror, send

Known = npt.NDArray[np.int32]


class Real(IntEnum):
    """Columns of `reals`."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2


class Int(IntEnum):
    """Columns of `ints`."""

    TOP_K = 0
    SEED = 1
    PROMPT_TOKENS = 2
    LOGPROBS = 3  # how many were asked for, plus one; 0: none


class BlockTables:
    """The block tables of one state group, by row."""

    def __init__(self, spec: StateSpec, max_rows: int, max_model_tokens: int, device: torch.device) -> None:
        self.block_tokens = spec.block_tokens
        self.window_tokens = spec.window_tokens
        self.sink_tokens = spec.sink_tokens
        self.width = -(-max_model_tokens // spec.block_tokens)
        self.mirror = Mirror((max_rows, self.width), np.int32, device)
        self._used_R = np.zeros(max_rows, np.int64)  # entries that a row's sequences wrote: the next one clears them

    def write(self, starts: Sequence[tuple[int, tuple[int, ...]]], grows: Sequence[RowBlocks]) -> None:
        """Give rows their first tables, then change entries; one send for all of them."""
        at: list[Ints] = []
        entries: list[npt.NDArray[np.int32]] = []
        for row, blocks in starts:
            table = np.zeros(max(len(blocks), self._used_R[row]), np.int32)
            table[: len(blocks)] = blocks
            self._used_R[row] = len(blocks)
            at.append(np.arange(len(table)) + row * self.width)
            entries.append(table)
        for grow in grows:
            stop = grow.at + len(grow.blocks)
            assert stop <= self.width, f"row {grow.row}: entry {stop - 1} is beyond its table of {self.width} blocks"
            self._used_R[grow.row] = max(self._used_R[grow.row], stop)
            at.append(np.arange(grow.at, stop) + grow.row * self.width)
            entries.append(np.array(grow.blocks, np.int32))
        if at:
            self.mirror.write(np.concatenate(at), np.concatenate(entries))


class Rows:
    """Everything by row. `generation` counts changes of membership: what was gathered before one is stale."""

    def __init__(
        self, *, max_rows: int, states: Sequence[StateSpec], max_model_tokens: int, device: torch.device
    ) -> None:
        self.device = device
        self.generation = 0
        self.last_R = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.positions_R = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.positions_host_R = np.zeros(max_rows, np.int64)
        self.reals = Mirror((max_rows, len(Real)), np.float32, device)
        self.ints = Mirror((max_rows, len(Int)), np.int64, device)
        self.tables = tuple(BlockTables(spec, max_rows, max_model_tokens, device) for spec in states)
        self.starts: list[RowStart | None] = [None] * max_rows
        self._known: list[Known | None] = [None] * max_rows

    def known(self, row: int) -> Known:
        """The ids that the row started with."""
        known = self._known[row]
        assert known is not None, f"row {row} was planned but no sequence has it"
        return known

    def start(self, row: int) -> RowStart:
        """How the row's sequence started."""
        start = self.starts[row]
        assert start is not None, f"row {row} was planned but no sequence has it"
        return start

    def apply(self, plan: Plan, known: Sequence[Known]) -> None:
        """Carry out the plan's `ends`, `starts` and `grows`. known: the ids of each start, ours to keep."""
        for row in plan.ends:
            self.starts[row] = self._known[row] = None
        for start, tokens in zip(plan.starts, known, strict=True):
            assert self.starts[start.row] is None, f"row {start.row} is taken: its sequence has not ended"
            self.starts[start.row], self._known[start.row] = start, tokens
        if plan.starts:
            self.generation += 1
            self._write_starts(plan.starts, known)
        if plan.starts or plan.grows:
            for group, tables in enumerate(self.tables):
                first = [(start.row, start.blocks[group]) for start in plan.starts]
                tables.write(first, [grow for grow in plan.grows if grow.group == group])

    def _write_starts(self, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        rows = np.array([start.row for start in starts], np.int64)
        asked = [start.sampling for start in starts]
        reals = np.array([(s.temperature, s.top_p, s.min_p) for s in asked], np.float32)
        ints = np.array(
            [
                (
                    start.sampling.top_k,
                    _signed(start.seed),
                    start.prompt_tokens,
                    0 if start.sampling.logprobs is None else start.sampling.logprobs + 1,
                )
                for start in starts
            ],
            np.int64,
        )
        self.reals.write(_elements(rows, len(Real)), reals.reshape(-1))
        self.ints.write(_elements(rows, len(Int)), ints.reshape(-1))
        # the last known token at its place: a row whose other tokens are all computed may decode at once
        self.place(rows, np.array([len(tokens) - 1 for tokens in known], np.int64))
        last = np.array([tokens[-1] for tokens in known], np.int64)
        self.last_R.index_copy_(0, send(rows, self.device), send(last, self.device))

    def place(self, rows: Ints, positions: Ints) -> None:
        """The next input of each row stands at this position."""
        self.positions_host_R[rows] = positions
        self.positions_R.index_copy_(0, send(rows, self.device), send(positions, self.device))

    def advance(self, rows: Ints, tokens: Ints, rows_N: Tensor, positions_N: Tensor, ids_N: Tensor) -> None:
        """Each of `rows` went on by `tokens` and drew ids_N, which stand at positions_N; the host counts along."""
        self.positions_host_R[rows] += tokens
        self.positions_R.index_copy_(0, rows_N, positions_N)
        self.last_R.index_copy_(0, rows_N, ids_N)


def _elements(rows: Ints, columns: int) -> Ints:
    """Flat indices of whole rows."""
    return (rows[:, None] * columns + np.arange(columns)).reshape(-1)


def _signed(seed: int) -> int:
    """Any integer as a 64-bit pattern."""
    return (seed + 2**63) % 2**64 - 2**63
