"""Which tokens run together, and the ragged batch that the kernels get for them.

A step's *segments* are its decode rows (one token each), then its chunks. A chunk may cover part of the layers, so
the layer axis is walked in stretches, cut wherever a segment enters or leaves and where the state group changes; the
segments active in a stretch run together.

Shape letters: S segments, T tokens, B blocks of the longest table, R rows, W entries of a row's table, K sinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from penstock.core.executor import StateSpec
from penstock.ops.batch import Placement, SegmentBatch, SinkBatch
from penstock.ops.place_segments import Placed, place_segments
from penstock.runtime.rows import BlockTables, Rows
from penstock.runtime.sharing import ByState, Shared
from penstock.runtime.transfer import Ints, send_all


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """Buffers that say who is in a step, filled anew for each: a captured step serves all. int64, q_starts int32.

    rows_T: of each token; offsets_T: its place in its segment. placement: which segment is what.
    """

    rows_S: Tensor
    lens_S: Tensor
    q_starts: Tensor
    rows_T: Tensor
    offsets_T: Tensor
    placement: Placement


@dataclass(frozen=True, slots=True)
class Entries:
    """What a step starts from. batches: by state group. ends_S: the position behind each segment, where the token
    stands that it draws. last_S: the token that each segment's row drew last.
    """

    batches: tuple[SegmentBatch, ...]
    ends_S: Tensor
    last_S: Tensor


class Layout:
    """Rows side by side, each with some tokens: all that is fixed while the members of a step are the same."""

    def __init__(self, rows: Ints, lens: Ints, device: torch.device, on_device: OnDevice | None = None) -> None:
        """on_device: what counts, where rows and lens are not known yet: any rows, and most tokens of each."""
        self.rows_host_S = rows
        self.placement = None if on_device is None else on_device.placement
        self.lens_host_S = lens
        self.q_starts_host = np.concatenate(([0], np.cumsum(lens)))
        self.n_tokens = int(self.q_starts_host[-1])
        self._q_starts = tuple(self.q_starts_host.tolist())
        self._offsets_T: Tensor | None = None  # every segment is one token
        if on_device is not None:
            self._q_starts = ()
            self.rows_S, self._lens_S, q_starts = on_device.rows_S, on_device.lens_S, on_device.q_starts
            self._rows_T, self._offsets_T = on_device.rows_T, on_device.offsets_T
        elif self.n_tokens == len(rows):
            self.rows_S, self._lens_S, q_starts = send_all((rows, lens, self.q_starts_host), device)
            self._rows_T = self.rows_S
        else:
            segments = np.repeat(np.arange(len(rows)), lens)
            offsets = np.arange(self.n_tokens) - self.q_starts_host[segments]
            self.rows_S, self._lens_S, q_starts, self._rows_T, self._offsets_T = send_all(
                (rows, lens, self.q_starts_host, rows[segments], offsets), device
            )
        self._q_starts_dev = q_starts.to(torch.int32)

    def tokens_of(self, segments: Ints) -> Ints:
        """Where the tokens of these segments lie, in order."""
        return np.concatenate([np.arange(*self.q_starts_host[s : s + 2]) for s in segments])

    def batches(self, rows: Rows, starts_host_S: Ints | None = None, shared: ByState = ()) -> tuple[SegmentBatch, ...]:
        """The batch of every state group at the rows' present positions.

        starts_host_S: bounds of these, for a batch that is to serve later positions, too; None: as they are.
        shared: by state group, what the first segments share; (): nothing.
        """
        return self.entries(rows, starts_host_S, shared).batches

    def entries(self, rows: Rows, starts_host_S: Ints | None = None, shared: ByState = ()) -> Entries:
        """The same, and what else a step starts from."""
        is_bound = starts_host_S is not None
        if starts_host_S is None:
            starts_host_S = rows.positions_host_R[self.rows_host_S]
        by_state = shared or (None,) * len(rows.tables)
        found = [
            self._batch(rows, tables, some, starts_host_S, is_bound)
            for tables, some in zip(rows.tables, by_state, strict=True)
        ]
        first, _ = found[0]
        return Entries(tuple(batch for _, batch in found), first.ends_S, first.last_S)

    def _batch(
        self, rows: Rows, tables: BlockTables, shared: Shared | None, starts_host_S: Ints, is_bound: bool
    ) -> tuple[Placed, SegmentBatch]:
        """starts: position of each segment's first token, on the host perhaps a bound of it."""
        size, first_F = tables.block_tokens, None
        kv_lens_host_S = starts_host_S + self.lens_host_S
        if tables.window_tokens is not None:  # from the first block that the segment's first token reads
            kv_lens_host_S -= np.maximum(starts_host_S - (tables.window_tokens - 1), 0) // size * size
            if is_bound:  # an earlier start may lie further behind the beginning of its block
                kv_lens_host_S += size - 1
        elif shared is not None:  # from the first block that the segment reads alone
            first_F = shared.first_S
            kv_lens_host_S[: len(shared.first_host_S)] -= shared.first_host_S * size
        placed = place_segments(
            rows.positions_R,
            rows.last_R,
            tables.mirror.dev,
            self.rows_S,
            self._lens_S,
            self._rows_T,
            self._offsets_T,
            first_F,
            size,
            tables.window_tokens,
            -(-int(kv_lens_host_S.max()) // size),
        )
        return placed, SegmentBatch(
            positions_T=placed.positions_T,
            slots_T=placed.slots_T,
            q_starts=self._q_starts_dev,
            kv_lens=placed.kv_lens_S,
            tables_SB=placed.tables_SB,
            q_starts_host=self._q_starts,
            kv_lens_host=tuple(kv_lens_host_S.tolist()),
            block_tokens=size,
            sinks=self._sinks(tables, placed.positions_T, starts_host_S),
            shared=None if shared is None else shared.runs,
            placement=self.placement,
        )

    def _sinks(self, tables: BlockTables, positions_T: Tensor, starts_host_S: Ints) -> SinkBatch | None:
        """What tokens read besides their window; None while nobody's window has left its beginning.

        In torch on every device: `place_segments` knows no sinks, which only streams without an end have.
        """
        window_tokens, n_sinks = tables.window_tokens, tables.sink_tokens
        last_host = int((starts_host_S + self.lens_host_S).max()) - 1
        if window_tokens is None or not n_sinks or last_host < window_tokens:
            return None
        size, tables_RW = tables.block_tokens, tables.mirror.dev
        sinks_K = torch.arange(n_sinks, device=positions_T.device)
        blocks_TK = tables_RW[:, sinks_K // size].index_select(0, self._rows_T).to(torch.int64)
        return SinkBatch(
            slots_TK=blocks_TK * size + sinks_K % size,
            is_seen_TK=sinks_K <= (positions_T - window_tokens).unsqueeze(1),
            positions_T=positions_T.clamp(max=n_sinks + window_tokens - 1),
        )


@dataclass(frozen=True, slots=True)
class Stretch:
    """Layers [first, stop), all of one state group, and the segments that pass through them."""

    first: int
    stop: int
    group: int
    active: tuple[int, ...]


def group_runs(n_layers: int, states: Sequence[StateSpec]) -> tuple[tuple[int, int], ...]:
    """(first layer, state group) of each maximal run of layers with one group; layers without state join a run."""
    group_of = {layer: group for group, spec in enumerate(states) for layer in spec.layers}
    runs: list[tuple[int, int]] = []
    for layer in range(n_layers):
        group = group_of.get(layer, runs[-1][1] if runs else 0)
        if not runs or runs[-1][1] != group:
            runs.append((layer, group))
    return tuple(runs)


def stretches(spans: Sequence[tuple[int, int]], runs: Sequence[tuple[int, int]], n_layers: int) -> Iterator[Stretch]:
    """Walk the layers. spans: [first, stop) of each segment; runs: as `group_runs` gives them."""
    groups = dict(runs)
    cuts = sorted({0, n_layers} | set(groups) | {layer for span in set(spans) for layer in span})
    group = 0
    for first, stop in pairwise(cuts):
        group = groups.get(first, group)
        active = tuple(s for s, (enter, leave) in enumerate(spans) if enter <= first and stop <= leave)
        if active:
            yield Stretch(first, stop, group, active)
