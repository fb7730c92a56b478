"""The shared runs of a decode group, as kernels get them: made anew when members join or leave, not every step.

Own lengths change every step and stay on the device: a step subtracts from them what the runs cover.

Shape letters: S members of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from penstock.core.plan import DecodeGroup, RowStart
from penstock.ops.batch import SharedRuns
from penstock.ops.shared_attention.packing import Capacity, PlacedRun
from penstock.runtime.cascade import Run, SharingRule, choose_runs, saved_tokens
from penstock.runtime.prefix_tree import PrefixTree
from penstock.runtime.rows import BlockTables, Rows
from penstock.runtime.transfer import Ints, send


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the members of a decode group share in one state group. placed: its runs, by places in the group.

    first_host_S: entries of a member's table that its runs cover. saved_tokens: keys of a layer that a step does not
    read again.
    """

    placed: tuple[PlacedRun, ...]
    runs: SharedRuns
    first_S: Tensor
    first_host_S: Ints
    saved_tokens: int


ByState = tuple[Shared | None, ...]  # by state group; None: nothing is shared


class Sharing:
    """Follows the decode group. rules: by state group; None where rows never share, as with windows."""

    def __init__(self, rows: Rows, rules: Sequence[SharingRule | None]) -> None:
        self._rows = rows
        self._states = [
            None if rule is None else _State(rows, tables, rule)
            for tables, rule in zip(rows.tables, rules, strict=True)
        ]
        self._key: tuple[int, int, tuple[int, ...]] | None = None
        self._shared: ByState = ()

    def of(self, group: DecodeGroup) -> ByState:
        """What the members share, the same object as long as nobody joins or leaves; () if that is nothing."""
        key = self._rows.generation, group.version, group.rows
        if self._key != key:
            found = tuple(None if state is None else state.shared(group.rows) for state in self._states)
            if not any(found):
                self._shared = ()
            elif len(self._shared) != len(found) or any(a is not b for a, b in zip(found, self._shared, strict=True)):
                self._shared = found
            self._key = key
        return self._shared


class _State:
    """One state group: the tree of its tables, and who is in it."""

    def __init__(self, rows: Rows, tables: BlockTables, rule: SharingRule) -> None:
        self._rows = rows
        self._tables = tables
        self._rule = rule
        self._tree = PrefixTree()
        self._starts: dict[int, RowStart] = {}  # of the rows in the tree: whose they are
        self._members: tuple[int, ...] = ()
        self._shared: Shared | None = None

    def shared(self, members: tuple[int, ...]) -> Shared | None:
        if self._follow(members) or members != self._members:
            runs = choose_runs(self._tree, self._rule, self._tables.block_tokens)
            self._shared, self._members = self._placed(runs, members) if runs else None, members
        return self._shared

    def _follow(self, members: tuple[int, ...]) -> bool:
        """Whether anybody joined or left."""
        now = {row: self._rows.start(row) for row in members}
        gone = [row for row, start in self._starts.items() if now.get(row) is not start]
        for row in gone:
            self._tree.remove(row)
            del self._starts[row]
        come = [row for row in members if row not in self._starts]
        for row in come:
            n_full = int(self._rows.positions_host_R[row]) // self._tables.block_tokens
            self._tree.add(row, self._tables.mirror.host[row, :n_full].copy())
            self._starts[row] = now[row]
        return bool(gone or come)

    def _placed(self, runs: Sequence[Run], members: tuple[int, ...]) -> Shared:
        tables, size = self._tables, self._tables.block_tokens
        place = {row: k for k, row in enumerate(members)}
        placed = tuple(
            PlacedRun(
                run.rows[0] * tables.width + run.first,
                (run.stop - run.first) * size,
                tuple(place[row] for row in run.rows),
                run.level,
            )
            for run in runs
        )
        first_host_S = np.zeros(len(members), np.int64)
        for run, where in zip(runs, placed, strict=True):
            first_host_S[list(where.members)] = run.stop  # of a row's runs, the deepest comes last
        capacity = Capacity.of(placed, len(members))
        packed = send(np.concatenate((capacity.pack(placed), first_host_S)), self._rows.device)
        most_keys = max(run.keys for run in placed)
        return Shared(
            placed=placed,
            runs=capacity.unpack(packed[: -len(members)], tables.mirror.dev, most_keys, placed),
            first_S=packed[-len(members) :],
            first_host_S=first_host_S,
            saved_tokens=saved_tokens(runs, size),
        )
