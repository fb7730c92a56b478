"""Shared runs as one array of integers, so that a change of all of them is one copy to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.ops.batch import PIECE_MEMBERS, SharedRun, SharedRuns


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """Blocks from entry `table_start` of the tables on, `keys` of them, are read by `members`, tokens of the step."""

    table_start: int
    keys: int
    members: tuple[int, ...]
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Room for so many of each; `tokens` of the step may be members."""

    runs: int
    members: int
    pieces: int
    levels: int
    tokens: int

    @classmethod
    def of(cls, runs: Sequence[PlacedRun], tokens: int) -> Capacity:
        """Just enough."""
        return cls(
            runs=len(runs),
            members=sum(len(run.members) for run in runs),
            pieces=sum(-(-len(run.members) // PIECE_MEMBERS) for run in runs),
            levels=1 + max((run.level for run in runs), default=0),
            tokens=tokens,
        )

    @classmethod
    def for_any(cls, tokens: int, levels: int) -> Capacity:
        """For all runs that so many tokens can have: two members at least, one run per level and token."""
        runs = max(1, min(tokens - 1, levels * (tokens // 2)))  # nested sets: a run more needs a token more
        members = levels * tokens
        return cls(runs=runs, members=members, pieces=runs + members // PIECE_MEMBERS, levels=levels, tokens=tokens)

    @property
    def sizes(self) -> list[int]:
        return [
            self.runs, self.runs, self.runs + 1, self.members, self.pieces, self.pieces, self.levels * self.tokens
        ]  # fmt: skip

    def pack(self, runs: Sequence[PlacedRun]) -> npt.NDArray[np.int64]:
        """Runs that fit, as `unpack` reads them."""
        packed = np.zeros(sum(self.sizes), np.int64)
        starts, keys, member_starts, members, piece_runs, piece_firsts, places = np.split(
            packed, np.cumsum(self.sizes)[:-1]
        )
        piece_runs[:] = places[:] = -1
        at = n_pieces = 0
        for r, run in enumerate(runs):
            stop = at + len(run.members)
            firsts = range(at, stop, PIECE_MEMBERS)
            starts[r], keys[r], member_starts[r + 1] = run.table_start, run.keys, stop
            members[at:stop] = run.members
            places[run.level * self.tokens + members[at:stop]] = np.arange(at, stop)
            piece_runs[n_pieces : n_pieces + len(firsts)] = r
            piece_firsts[n_pieces : n_pieces + len(firsts)] = firsts
            at, n_pieces = stop, n_pieces + len(firsts)
        member_starts[len(runs) + 1 :] = at
        return packed

    def unpack(self, packed: Tensor, tables: Tensor, most_keys: int, runs: Sequence[PlacedRun]) -> SharedRuns:
        """Views of `packed`. tables: those that `table_start` counts in. runs: those that are in it, where that is
        known; none if it will be refilled.
        """
        starts_R, keys_R, member_starts, members_M, piece_runs_P, piece_firsts_P, places = torch.split(
            packed, self.sizes
        )
        host, at = [], 0
        for run in runs:
            host.append(SharedRun(run.table_start, run.keys, at, at + len(run.members), run.level))
            at += len(run.members)
        return SharedRuns(
            tables=tables.view(-1),
            table_starts_R=starts_R,
            keys_R=keys_R,
            member_starts=member_starts,
            members_M=members_M,
            piece_runs_P=piece_runs_P,
            piece_firsts_P=piece_firsts_P,
            places_LT=places.view(self.levels, self.tokens),
            most_keys=most_keys,
            runs_host=tuple(host),
        )


def share(runs: Sequence[PlacedRun], tables: Tensor, tokens: int) -> SharedRuns:
    """Runs of a step of so many tokens, on the device of the tables."""
    capacity = Capacity.of(runs, tokens)
    packed = torch.from_numpy(capacity.pack(runs)).to(tables.device)
    return capacity.unpack(packed, tables, max((run.keys for run in runs), default=0), runs)
