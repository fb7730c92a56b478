"""A plan says what one step does. Policies choose `decode` and `chunks`; the scheduler adds memory and rows.

Sequences appear as *rows*: the place of a sequence in the device's batch buffers (token ids, positions, block tables,
sampling parameters). The device keeps these between steps, so a steady decode is an empty plan around the same
`DecodeGroup`: every member takes one token, and nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from penstock.core.request import SamplingParams, Tokens


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows that each take one token this step. A new version means that the members changed."""

    rows: tuple[int, ...] = ()
    version: int = 0

    @property
    def tokens(self) -> int:
        return len(self.rows)


NO_DECODE = DecodeGroup()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Known tokens [start, stop) of one row through layers [first_layer, stop_layer); stop_layer None: to the last.

    When the last layer is reached and `stop` is the end of the row's known tokens, the row samples its next token.
    """

    row: int
    start: int
    stop: int
    first_layer: int = 0
    stop_layer: int | None = None

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStart:
    """A sequence takes a row.

    tokens: all known ids (prompt, and outputs if it resumes). computed_tokens: how many have their state in `blocks`
    already. blocks: one table per state group. The draw for output k is fixed by (seed, k) alone, so a sequence that
    resumes draws what it would have drawn; k counts from `prompt_tokens`.
    """

    row: int
    tokens: Tokens
    prompt_tokens: int
    computed_tokens: int
    blocks: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Entries [at, at + len(blocks)) of a row's block table in one state group become `blocks`."""

    row: int
    group: int
    at: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy a whole block within a state group, before the step computes (copy-on-write)."""

    group: int
    source: int
    target: int


class Toward(Enum):
    """Which way the content of a block moves between the device and host memory."""

    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class BlockMove:
    """Copy a whole block of a state group to a block of the host tier, or back. What it is copied from stays as it is.

    Moves run beside the steps, so that others go on while bytes are under way; but they look as if each had happened at
    its place in its plan. Whoever executes plans makes a step wait where it reads or overwrites what is under way.
    """

    group: int
    block: int
    host_block: int
    toward: Toward


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One step. Executors apply `ends`, moves to the host, `starts`, `grows`, moves to the device and `copies`, in this
    order, then compute.

    Samples come back in the order: members of `decode`, then those chunks that end their row's known tokens
    (`sampling_chunks`).
    """

    decode: DecodeGroup = NO_DECODE
    chunks: tuple[Chunk, ...] = ()
    id: int = 0
    ends: tuple[int, ...] = ()
    starts: tuple[RowStart, ...] = ()
    grows: tuple[RowBlocks, ...] = ()
    moves: tuple[BlockMove, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    sampling_chunks: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that pass through at least one layer."""
        return self.decode.tokens + sum(chunk.tokens for chunk in self.chunks)

    @property
    def is_empty(self) -> bool:
        return not (self.decode.rows or self.chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leap:
    """`steps` plans in a row, numbered from `first_id`, that hold `decode` and blocks for its members, nothing else.

    ends: rows that the first of them ends, none of the members'. grows: (number of the step, from 0, with which it
    goes; the blocks).
    """

    decode: DecodeGroup
    first_id: int
    steps: int
    ends: tuple[int, ...]
    grows: tuple[tuple[int, RowBlocks], ...]
