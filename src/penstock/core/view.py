"""What a policy sees, and the protocol of each policy slot.

A policy is asked, never told to act: it reads a `View` and answers; the scheduler checks the answer against its
invariants and applies it. Policies that learn keep their own state and get the events of `Observer`. Answers depend
on nothing but the view, that state, and a generator that was handed in: so a replay decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import msgspec

from penstock.core.plan import Chunk, DecodeGroup, Plan
from penstock.core.request import Request
from penstock.core.sequence import SequenceView


class PoolView(Protocol):
    """The blocks of one state group. Those of another are of another size: the two are never added."""

    @property
    def total_blocks(self) -> int: ...
    @property
    def available_blocks(self) -> int:
        """Free blocks, and cached ones that may be evicted."""
        ...

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold the state of a sequence of so many tokens."""
        ...

    def held_blocks(self, seq: SequenceView) -> int:
        """Blocks in the sequence's table."""
        ...


class MemoryView(Protocol):
    """Memory as policies see it. A sequence needs room in every pool."""

    @property
    def pools(self) -> Seq[PoolView]:
        """One per state group of the model."""
        ...

    def hit_tokens(self, seq: SequenceView) -> int:
        """Tokens of a waiting sequence that the cache holds, or that lie in host memory."""
        ...

    def coming_tokens(self, seq: SequenceView) -> int:
        """Tokens of a waiting sequence that the cache will hold when those who run have computed what they share with
        it, those included that it holds now; 0: nobody computes what is missing.
        """
        ...

    def swap_bytes(self, seq: SequenceView) -> int | None:
        """Bytes that a sequence with a row would have copied to host memory now; None: it cannot yield so."""
        ...


class Estimate(msgspec.Struct, frozen=True):
    """Seconds that a step takes; the truth is expected within `band_frac` of it.

    is_extrapolated: the step is larger than anything that was measured.
    """

    seconds: float
    band_frac: float
    is_extrapolated: bool = False


class CostView(Protocol):
    """What things cost on this instance, as far as is known by now. Answers grow with what is asked about."""

    def prefill_s(self, tokens: int) -> float:
        """Seconds of device time to compute so many known tokens."""
        ...

    def move_s(self, n_bytes: int) -> float:
        """Seconds to copy so much between device and host memory, one way."""
        ...

    def step(self, plan: Plan) -> Estimate | None:
        """What a plan would take if it came next; None: no cost model is known for this instance."""
        ...


class LengthPredictor(Protocol):
    """The `predict` slot: how many tokens will a sequence put out in all?"""

    def expected_tokens(self, seq: SequenceView) -> int:
        """A central guess, at least what it has put out already, at most its limit."""
        ...

    def bound_tokens(self, seq: SequenceView) -> int:
        """A number it will rarely exceed, at most its limit."""
        ...


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one instance at one moment. Orders are total; nothing here changes while a policy looks.

    waiting: the queue, in the order of arrival at it; the `order` slot ranks it for admission. prefilling: running
    sequences with known tokens to compute, in the order of their admission; who followed somebody stands where it would
    have been. decoding: the rows that take a token each step. running: all that hold a row. following: while the
    `admit` slot is asked, those in the queue before the sequence in question who follow; they get room before it.
    """

    now_s: float
    waiting: Seq[SequenceView]
    prefilling: Seq[SequenceView]
    decoding: DecodeGroup
    running: Seq[SequenceView]
    memory: MemoryView
    lengths: LengthPredictor
    costs: CostView
    n_layers: int
    max_rows: int
    following: Seq[SequenceView] = ()


class Admission(Enum):
    """Answer of the `admit` slot for the sequence at the head of the queue."""

    START = "start"
    WAIT = "wait"  # not now, and nobody behind it either
    SKIP = "skip"  # not now, but look at the next
    FOLLOW = "follow"  # it may start; but when a running one has computed its prefix, if one is at it


class Yield(Enum):
    """How a running sequence gives way."""

    RECOMPUTE = "recompute"  # its memory goes; it computes everything again
    SWAP = "swap"  # its state is copied to host memory, and back when it goes on; see `MemoryView.swap_bytes`
    PAUSE = "pause"  # it keeps row and memory and is not planned


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running sequence, by row, and how it yields."""

    row: int
    how: Yield = Yield.RECOMPUTE


class OrderPolicy(Protocol):
    """Who is first in the queue: the lowest key. Ties go to (arrival_s, id)."""

    @property
    def is_static(self) -> bool:
        """Keys depend on nothing but the sequence, so the queue is sorted again only when that changes."""
        ...

    def key(self, seq: SequenceView, view: View) -> tuple[float, ...]: ...


class AdmitPolicy(Protocol):
    """May the sequence start now? `view.memory` says what its prompt needs."""

    def admit(self, seq: SequenceView, view: View) -> Admission: ...


class Doorkeeper:
    """An `admit` policy that derives from this is asked when a request arrives, before it is accepted."""

    def late_by_s(self, request: Request, view: View) -> float | None:
        """None: let it in. Else it is refused; by so many seconds it would miss what it asked for."""
        return None


class BatchPolicy(Protocol):
    """Whose tokens and which layers this step: a plan with `decode` and `chunks`, nothing else filled in.

    `decode` is `view.decoding` as a whole, or `NO_DECODE`.
    """

    def batch(self, view: View) -> Plan: ...


class PreemptPolicy(Protocol):
    """Who yields: of free will before admission (`choose`), or since memory is short (`victim`)."""

    def choose(self, view: View) -> Seq[Preemption]: ...

    def victim(self, view: View, candidates: Seq[SequenceView]) -> Preemption:
        """One of `candidates` (never empty), in the order of their admission."""
        ...


class RetainPolicy(Protocol):
    """What stays in the cache: told what becomes evictable and what is used again, asked what goes.

    One object per pool: block numbers of two pools have nothing to do with each other.
    """

    def pin_until_s(self, seq: SequenceView, now_s: float) -> float | None:
        """Asked when a sequence ends: keep its blocks from eviction until then (None: do not)."""
        ...

    def on_cached(self, blocks: Seq[int], now_s: float) -> None:
        """They became evictable, in this order."""
        ...

    def on_removed(self, blocks: Seq[int]) -> None:
        """They are in use again, or were evicted."""
        ...

    def victims(self, n: int) -> Seq[int]:
        """The `n` evictable blocks that go next; there are at least so many."""
        ...


class Steady:
    """A batch or preempt policy that derives from this says: while nobody rests or has a prompt to compute, everybody
    decodes and nobody yields, step after step, whoever waits. So it need not be asked before each of them.
    """

    __slots__ = ()


class Observer:
    """A policy of any slot that derives from this follows events; override what it needs."""

    def on_arrival(self, seq: SequenceView, view: View) -> None:
        """A sequence joined the queue."""

    def on_step(self, plan: Plan, view: View) -> None:
        """A plan was handed to the executor."""

    def on_finish(self, seq: SequenceView, view: View) -> None:
        """A sequence ended, whatever the reason."""

    def on_pressure(self, view: View) -> None:
        """Memory ran short: a victim is about to be asked for."""


def next_chunk(seq: SequenceView, tokens: int) -> Chunk:
    """The next `tokens` known tokens of a prefilling sequence, through every layer."""
    assert seq.row is not None
    return Chunk(row=seq.row, start=seq.planned_tokens, stop=seq.planned_tokens + tokens)
