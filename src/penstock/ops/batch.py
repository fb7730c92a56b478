"""The ragged batch that the kernels of one state group share.

Shape letters: T tokens of the step, S segments, B blocks of the longest table, K sinks, R shared runs, M members of
all of them, P pieces, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkBatch:
    """The first tokens of each sequence, which every later one goes on to read (StreamingLLM, arXiv 2309.17453).

    slots_TK: int64, where the state of each sink of a token's sequence lies. is_seen_TK: the token reads it here, and
    not in its window. positions_T: int64, place of each token among the keys that are kept; its query is rotated by it.
    """

    slots_TK: Tensor
    is_seen_TK: Tensor
    positions_T: Tensor


@dataclass(frozen=True, slots=True)
class SharedRun:
    """A run as the host sees it: its blocks begin at entry `table_start` of the tables, its members are
    `members_M[first : stop]`. level: runs before it on each member."""

    table_start: int
    keys: int
    first: int
    stop: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # found again by identity
class SharedRuns:
    """Keys that several one-token segments read alike: each run is read once for all its members (arXiv 2402.05099).

    Every key of a run comes before the tokens that read it, so nothing is masked. A token is in one run per level at
    most. All tensors are int64 but `tables`, and may have room for more than there is (a captured step serves later
    runs, too); what is empty has no member.

    tables: int32, flat, where runs find their blocks. table_starts_R, keys_R: entry in `tables` of a run's first block,
    and its length. member_starts: [R + 1], run r has members_M[member_starts[r] : member_starts[r + 1]], tokens of the
    step. piece_runs_P, piece_firsts_P: runs cut into pieces of `PIECE_MEMBERS`; -1: no piece. places_LT: where each
    token stands in members_M, by level; -1: nowhere. most_keys: no run is longer. runs_host: of the runs that are there
    now; empty where a step is captured.
    """

    tables: Tensor
    table_starts_R: Tensor
    keys_R: Tensor
    member_starts: Tensor
    members_M: Tensor
    piece_runs_P: Tensor
    piece_firsts_P: Tensor
    places_LT: Tensor
    most_keys: int
    runs_host: tuple[SharedRun, ...]


PIECE_MEMBERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which segments have one token and how the others are cut into tiles, where the host says it in a buffer.

    For steps that are captured, and serve batches that are not known yet. All are int32; -1 where nothing is needed.
    singles_S: segments of one token. tile_segments_P, tile_firsts_P: a segment, and the first of its tokens in a tile
    of `tile_tokens`.
    """

    singles_S: Tensor
    tile_segments_P: Tensor
    tile_firsts_P: Tensor
    tile_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentBatch:
    """S runs of consecutive tokens, one per sequence of the step, laid end to end.

    positions_T: int64, place of each token in its sequence. slots_T: int64, where its state is written in the pool:
    block * block_tokens + offset. q_starts: [S + 1], segment s owns tokens [q_starts[s], q_starts[s+1]).
    kv_lens: [S], keys that the segment's *last* token sees, itself included (attention is causal and ends there).
    tables_SB: int32, block tables, padded with 0. The `_host` copies serve shapes and loops without a device sync.

    Where layers read a window, tables begin with the first block that a token of the segment reads, and kv_lens count
    from there: a kernel compares places among keys, and those stay as they are. positions_T are always whole.
    sinks: what the tokens read besides, if there is anything.

    shared: runs of keys that come before those of the tables, for segments of one token. There, tables and kv_lens
    begin behind a segment's last run, as they do behind a window.

    placement: what else says which segment is what; then `q_starts_host` is empty, `kv_lens_host` are upper bounds, and
    a token may belong to no segment: what attention makes of it is zero.
    """

    positions_T: Tensor
    slots_T: Tensor
    q_starts: Tensor
    kv_lens: Tensor
    tables_SB: Tensor
    q_starts_host: tuple[int, ...]
    kv_lens_host: tuple[int, ...]
    block_tokens: int
    sinks: SinkBatch | None = None
    shared: SharedRuns | None = None
    placement: Placement | None = None

    @property
    def is_decode(self) -> bool:
        """Every segment is one token."""
        return self.placement is None and len(self.kv_lens_host) == self.q_starts_host[-1]
