"""What a decode group feeds to a step."""

from __future__ import annotations

import numpy as np

from penstock.core.plan import DecodeGroup
from penstock.runtime.graphs import Drawing, drawing_of
from penstock.runtime.layout import Layout
from penstock.runtime.logits import LogitsStage
from penstock.runtime.rows import Rows
from penstock.runtime.sampling import Draw
from penstock.runtime.transfer import Ints


class DecodeInputs:
    """Made anew only when the members of the group change."""

    def __init__(self, rows: Rows, logits: LogitsStage) -> None:
        self._rows = rows
        self._logits = logits
        self._layout_key: tuple[int, tuple[int, ...]] | None = None
        self._draw_key: tuple[int, int, tuple[int, ...]] | None = None
        self._drawing_key: tuple[int, int, tuple[int, ...]] | None = None

    def drawing(self, group: DecodeGroup) -> tuple[Drawing, Ints]:
        """How the members draw, and who they are."""
        key = self._rows.generation, group.version, group.rows
        if self._drawing_key != key:
            self._members = np.array(group.rows, np.int64)
            self._drawing = drawing_of(self._members, self._rows, self._logits)
            self._drawing_key = key
        return self._drawing, self._members

    def layout(self, group: DecodeGroup) -> Layout:
        key = group.version, group.rows
        if self._layout_key != key:
            rows = np.array(group.rows, np.int64)
            self._layout, self._layout_key = Layout(rows, np.ones_like(rows), self._rows.device), key
        return self._layout

    def draw(self, group: DecodeGroup) -> Draw:
        key = self._rows.generation, group.version, group.rows
        if self._draw_key != key:
            members = np.array(group.rows, np.int64)
            self._draw, self._draw_key = Draw(members, self._rows, self._logits), key
        return self._draw
