"""Device memory for a feature that few rows use: a table with a line for each of them, and none for the others.

A row takes a line when its sequence starts and gives it back when that ends. Tables are made at the first use and
double when they are full, so what nobody uses costs no memory.

Shape letters: R rows, M members that use the feature, W width of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from penstock.runtime.transfer import Ints


class Lines:
    """Which row has which line."""

    def __init__(self, max_rows: int) -> None:
        self._has_line_R = np.zeros(max_rows, np.bool_)
        self._line_R = np.zeros(max_rows, np.int64)
        self._free: list[int] = []
        self.n_lines = 0  # lines that were ever in use at once
        self.n_used = 0

    def take(self, rows: Sequence[int]) -> Ints:
        """A line for each row; the tables must hold `n_lines` of them afterwards."""
        missing = len(rows) - len(self._free)
        if missing > 0:
            self._free += range(self.n_lines, self.n_lines + missing)
            self.n_lines += missing
        lines = np.array([self._free.pop() for _ in rows], np.int64)
        self._line_R[rows] = lines
        self._has_line_R[rows] = True
        self.n_used += len(rows)
        return lines

    def give_back(self, row: int) -> None:
        """The row's line, if it has one, may serve another row."""
        if self._has_line_R[row]:
            self._has_line_R[row] = False
            self._free.append(int(self._line_R[row]))
            self.n_used -= 1

    def among(self, members: Ints) -> tuple[Ints, Ints]:
        """(places in `members` of those that have a line, their lines)."""
        at_M = np.flatnonzero(self._has_line_R[members])
        return at_M, self._line_R[members[at_M]]


class Table:
    """One tensor [lines, width]."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.width = width
        self.dev = torch.zeros(0, width, dtype=dtype, device=device)

    def hold(self, n_lines: int) -> None:
        """Make room for so many lines; what is in the others stays."""
        has = len(self.dev)
        if n_lines > has:
            old, self.dev = self.dev, self.dev.new_zeros(max(n_lines, 2 * has), self.width)
            self.dev[:has] = old

    def write(self, lines: Tensor, values: Tensor) -> None:
        self.dev.index_copy_(0, lines, values)

    def read(self, lines: Tensor) -> Tensor:
        return self.dev.index_select(0, lines)

    @property
    def flat(self) -> Tensor:
        return self.dev.view(-1)
