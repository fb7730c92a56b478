"""The ragged batch that the kernels of one state group share.

Shape letters: T tokens of the step, S segments, B blocks of the longest table, K sinks.
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

    @property
    def is_decode(self) -> bool:
        """Every segment is one token."""
        return len(self.kv_lens_host) == self.q_starts_host[-1]
