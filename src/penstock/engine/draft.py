"""A plan while the scheduler fills it in: pieces of a sequence that is preempted meanwhile fall out again."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from penstock.core.plan import BlockCopy, BlockMove, Chunk, DecodeGroup, Plan, RowBlocks, RowStart
from penstock.core.sequence import Sequence


@dataclass(slots=True)
class Draft:
    """The pieces of the next plan, by the row that they belong to."""

    starts: dict[int, RowStart] = field(default_factory=dict)
    grows: list[RowBlocks] = field(default_factory=list)
    copies: list[tuple[int, BlockCopy]] = field(default_factory=list)
    chunks: dict[int, Chunk] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)

    @property
    def has_only_ends(self) -> bool:
        return not (self.starts or self.grows or self.copies or self.chunks)

    def end(self, row: int) -> None:
        """The row's sequence is gone. A device that never heard of it need not hear of its end."""
        if self.starts.pop(row, None) is None:
            self.ends.append(row)
        self.grows = [grow for grow in self.grows if grow.row != row]
        self.copies = [(owner, copy) for owner, copy in self.copies if owner != row]
        self.chunks.pop(row, None)

    def take_ends(self) -> tuple[int, ...]:
        """For a plan that tells of nothing else; they are not told again."""
        ends, self.ends = tuple(self.ends), []
        return ends

    def to_plan(self, plan_id: int, decode: DecodeGroup, sampling_rows: set[int], moves: tuple[BlockMove, ...]) -> Plan:
        chunks = tuple(self.chunks.values())
        return Plan(
            id=plan_id,
            decode=decode,
            chunks=chunks,
            ends=tuple(self.ends),
            starts=tuple(self.starts.values()),
            grows=tuple(self.grows),
            moves=moves,
            copies=tuple(copy for _, copy in self.copies),
            sampling_chunks=tuple(i for i, chunk in enumerate(chunks) if chunk.row in sampling_rows),
        )


class Planned(msgspec.Struct, frozen=True):
    """A plan that was handed out, and whose samples its result will bring: (sequence, epoch), in order."""

    plan: Plan
    samples: tuple[tuple[Sequence, int], ...]
    chunk_owners: tuple[tuple[Sequence, int], ...]
