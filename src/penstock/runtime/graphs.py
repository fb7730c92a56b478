"""Decode steps as CUDA graphs: one launch for a whole step, from the last tokens to the next ones.

Theory. Everything that a decode step reads stands on the device by row (`rows.py`): last tokens, positions, block
tables, sampling parameters. Only *which* rows take part comes from the host, so a captured step reads them from one
small buffer, and a step whose members are those of the last one sends nothing. A graph has a fixed number of rows, its
bucket; what a smaller batch leaves is filled with the scratch row, which has a block of its own to write to and stays
at position 0.

Graphs are captured when they are first needed: a bucket's first step runs kernel by kernel (and compiles what is new),
its second one is captured. So the start does not wait for them. While there is nothing to do, those that may be needed
are captured one after the other (`prepare`), so that a server that stood idle for some seconds has them.

Rows that share prefixes make a step of another form, with a graph of its own per bucket. Which runs there are stands in
buffers with room for any (`Capacity.for_any`), filled anew when members join or leave; own lengths follow on the
device, as ever.

Beside its layers and its head a step is a handful of kernels, for each of them is a few microseconds of a step that
may take 800: `place_segments` once per state group, the embedding, `rope_angles`, `draw_parameters` and the draw, and
`advance_rows`. Sinks (StreamingLLM) are the exception: what is read of them is worked out in torch.

What draws is part of the graph, in three forms: argmax, a plain draw, a draw behind filters. Rows that want more of
their logits (log-probabilities, penalties, biases, allowed ids) end the graph at the logits; the rest is as ever.

Shape letters: R rows, S places of a bucket, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from penstock.core.plan import DecodeGroup
from penstock.ops.advance_rows import advance_rows
from penstock.ops.batch import SegmentBatch
from penstock.ops.draw_parameters import draw_parameters
from penstock.ops.sample import sample
from penstock.ops.shared_attention.packing import Capacity
from penstock.runtime.cascade import MOST_LEVELS
from penstock.runtime.layout import Layout
from penstock.runtime.logits import LogitsStage
from penstock.runtime.readback import KERNEL_BY_KERNEL
from penstock.runtime.rows import BlockTables, Int, Real, Rows
from penstock.runtime.sharing import ByState, Shared
from penstock.runtime.transfer import Ints, send

log = logging.getLogger(__name__)
MOST_FREE_FRAC = 0.5  # of what is free at the start: graphs that could be done without take no more
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 768, 1024, 1536, 2048)


class Drawing(Enum):
    """How the rows of a step get their tokens."""

    GREEDY = "greedy"
    PLAIN = "plain"
    FILTERED = "filtered"
    OUTSIDE = "outside"  # of the graph


def drawing_of(members: Ints, rows: Rows, logits: LogitsStage) -> Drawing:
    """The least that serves all of these rows. Reads the host's copies only."""
    ints_NI, reals_NR = rows.ints.host[members], rows.reals.host[members]
    if ints_NI[:, Int.LOGPROBS].any() or logits.is_used_by(members):
        return Drawing.OUTSIDE
    is_hot_N = reals_NR[:, Real.TEMPERATURE] > 0
    if not is_hot_N.any():
        return Drawing.GREEDY
    ints_NI, reals_NR = ints_NI[is_hot_N], reals_NR[is_hot_N]
    is_plain = not ints_NI[:, Int.TOP_K].any() and (reals_NR[:, Real.TOP_P] >= 1).all()
    return Drawing.PLAIN if is_plain and not reals_NR[:, Real.MIN_P].any() else Drawing.FILTERED


class Walk(Protocol):
    """Through all layers: (residual stream, what is still to be added to it). batches: by state group."""

    def __call__(self, x_TD: Tensor, batches: Sequence[SegmentBatch]) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The parts of a step that depend on the model. logits_to_draw: as the model gives them; logits: in float32."""

    embed: Callable[[Tensor], Tensor]
    walk: Walk
    logits: Callable[[Tensor, Tensor | None], Tensor]
    logits_to_draw: Callable[[Tensor, Tensor | None], Tensor]


class _SharedRoom:
    """Room on the device for whatever a bucket's rows share in one state group."""

    def __init__(self, tables: BlockTables, size: int) -> None:
        device = tables.mirror.dev.device
        self._capacity = Capacity.for_any(size, MOST_LEVELS)
        self._packed = torch.from_numpy(self._capacity.pack(())).to(device)
        self._first_S = torch.zeros(size, dtype=torch.int64, device=device)
        most_keys = tables.width * tables.block_tokens
        self.shared = Shared(
            placed=(),
            runs=self._capacity.unpack(self._packed, tables.mirror.dev, most_keys, ()),
            first_S=self._first_S,
            first_host_S=np.zeros(size, np.int64),  # bounds, as the lengths are
            saved_tokens=0,
        )

    def fill(self, some: Shared | None) -> None:
        """Hold these runs from now on."""
        device = self._packed.device
        first_host_S = np.zeros(len(self._first_S), np.int64)
        if some is not None:
            first_host_S[: len(some.first_host_S)] = some.first_host_S
        packed = self._capacity.pack(() if some is None else some.placed)
        self._packed.copy_(send(packed, device), non_blocking=True)
        self._first_S.copy_(send(first_host_S, device), non_blocking=True)


class SharedRooms:
    """Of all state groups; a group that keeps a window has none."""

    def __init__(self, all_tables: Sequence[BlockTables], size: int) -> None:
        self._rooms = tuple(
            _SharedRoom(tables, size) if tables.window_tokens is None else None for tables in all_tables
        )
        self._holds: ByState = ()

    @property
    def shared(self) -> ByState:
        """What a captured step reads: whatever is held when it runs."""
        return tuple(None if room is None else room.shared for room in self._rooms)

    def hold(self, shared: ByState) -> None:
        """Fill in what is shared, unless it stands there already."""
        if self._holds is not shared:
            for room, some in zip(self._rooms, shared, strict=True):
                if room is not None:
                    room.fill(some)
            self._holds = shared


@dataclass(slots=True)
class _Bucket:
    """What all graphs of one size have in common. layout.rows_S is where a graph reads its rows, `runs` what they
    share, made when rows of this size first do.
    """

    layout: Layout
    holds: tuple[int, tuple[int, ...]] | None = None  # the group whose rows stand there
    runs: SharedRooms | None = None


@dataclass(frozen=True, slots=True)
class _Form:
    """Steps of one form are one graph."""

    size: int
    drawing: Drawing
    is_shared: bool


@dataclass(frozen=True, slots=True)
class Captured:
    """A step that was recorded. logits: for a draw outside of the graph; overwritten by the next replay of any graph.
    how: in words for people.
    """

    graph: torch.cuda.CUDAGraph
    logits_SV: Tensor | None
    how: str


class Tape:
    """Records work of a device, to be done again with one launch. What it recorded shares memory: one runs at a time.

    is_on: else every step runs as the first of its kind does; the same kernels, so the same tokens. is_full: there is
    no memory for more; what is not recorded runs kernel by kernel from now on. must_record: running out of memory is an
    error instead, for others record the same. most_rows: of logits that are kept for who draws outside.
    """

    def __init__(self, device: torch.device, most_rows: int, *, must_record: bool = False) -> None:
        self.is_on = True
        self.is_full = False
        self._device = device
        self._most_rows = most_rows
        self._must_record = must_record
        self._kept: Tensor | None = None
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._least_free_bytes = int((1 - MOST_FREE_FRAC) * self._free_bytes())

    def has_room(self) -> bool:
        """Whether more may be recorded than has to be: it takes memory that large steps will need."""
        if self.is_on and not self.is_full and self._free_bytes() < self._least_free_bytes:
            self.note_full(f"graphs have taken {MOST_FREE_FRAC:.0%} of what the device had left for them and for steps")
        return self.is_on and not self.is_full

    def record(self, body: Callable[[], Tensor | None]) -> tuple[torch.cuda.CUDAGraph, Tensor | None] | None:
        """(the graph, what the body returned, filled whenever the graph runs). Nothing of it is done yet.

        None: there is no memory for it.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    found = body()
                except BaseException:
                    with suppress(RuntimeError):  # it may be void already; what broke it is what counts
                        graph.capture_end()
                    raise
                graph.capture_end()
        except torch.OutOfMemoryError as full:
            if self._must_record:
                raise
            self.note_full(str(full))
            return None
        finally:
            current.wait_stream(self._stream)
        return graph, found

    def keep(self, logits_NV: Tensor) -> Tensor:
        """A copy in memory that all graphs share, until the next step: else each would hold logits of its own."""
        if self._kept is None:  # before anything like this is recorded, for such a step ran kernel by kernel first
            self._kept = torch.empty((self._most_rows, logits_NV.shape[1]), device=self._device)
        return self._kept[: len(logits_NV)].copy_(logits_NV)

    def wait(self) -> None:
        """Until all that is queued is done."""
        torch.cuda.synchronize(self._device)

    def _free_bytes(self) -> int:
        """Of the device, and what torch holds of it and does not use."""
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + cached

    def note_full(self, why: str) -> None:
        """Record nothing more."""
        self.is_full = True
        log.warning("kinds of steps that were not captured yet run kernel by kernel from now on: %s", why)


class DecodeGraphs:
    """Runs decode groups. scratch_row: the one behind all others, with blocks that are nobody's.

    can_share: some of the rows may have a prefix in common.
    """

    def __init__(
        self, model: Model, rows: Rows, scratch_row: int, longest_tokens: int, tape: Tape, *, can_share: bool
    ) -> None:
        self._model = model
        self._rows = rows
        self._tape = tape
        self._scratch_row = scratch_row
        self._longest_tokens = longest_tokens
        self._forms_shared = (False, True) if can_share else (False,)
        self.sizes = (*(size for size in BUCKETS if size < scratch_row), scratch_row)
        self._buckets: dict[int, _Bucket] = {}
        self._graphs: dict[_Form, Captured] = {}
        self.how = KERNEL_BY_KERNEL  # of the last step
        self._drawings = {Drawing.PLAIN: None}  # in the order in which they were met; the usual one is expected
        self._seen: set[_Form] = set()
        self._ids_S = torch.zeros(scratch_row, dtype=torch.int32, device=rows.device)

    def run(self, group: DecodeGroup, drawing: Drawing, shared: ByState = ()) -> Tensor:
        """One step of the group: its new tokens, int32, or its logits if it draws outside; good until the next step.

        shared: what the members share; (): nothing.
        """
        size = next(size for size in self.sizes if size >= group.tokens)
        bucket = self._bucket(size)
        if shared:
            self._hold(bucket, shared)
        self._drawings[drawing] = None
        key = _Form(size, drawing, bool(shared))
        if key in self._seen and key not in self._graphs and self._tape.is_on and not self._tape.is_full:
            self._capture(bucket, key)
        if bucket.holds != (group.version, group.rows):
            bucket.layout.rows_S.copy_(send(self._filled(size, group.rows), self._rows.device), non_blocking=True)
            bucket.holds = group.version, group.rows
        if key in self._graphs:
            captured = self._graphs[key]
            captured.graph.replay()
            self.how = captured.how
            logits_SV = captured.logits_SV
        else:
            self._seen.add(key)
            self.how = KERNEL_BY_KERNEL
            logits_SV = self._body(bucket, key)
        return (self._ids_S if logits_SV is None else logits_SV)[: group.tokens]

    def prepare(self) -> bool:
        """Capture one form that was not met yet, if there is one: rows draw as others did so far.

        The largest come first, so that the others fit into their memory.
        """
        forms = (
            _Form(size, drawing, is_shared)
            for is_shared in self._forms_shared
            for drawing in self._drawings
            for size in reversed(self.sizes)
            if (size > 1 or not is_shared) and drawing is not Drawing.OUTSIDE
        )
        form = next((form for form in forms if form not in self._graphs), None)
        if form is None:
            return False
        bucket = self._bucket(form.size)
        if form.is_shared and bucket.runs is None:
            bucket.runs = SharedRooms(self._rows.tables, form.size)
        bucket.layout.rows_S.fill_(self._scratch_row)
        bucket.holds = None
        self._body(bucket, form)
        self._capture(bucket, form)
        return True

    def _bucket(self, size: int) -> _Bucket:
        if size not in self._buckets:
            layout = Layout(self._filled(size, ()), np.ones(size, np.int64), self._rows.device)
            self._buckets[size] = _Bucket(layout)
        return self._buckets[size]

    def _hold(self, bucket: _Bucket, shared: ByState) -> None:
        """Fill in what is shared."""
        if bucket.runs is None:
            bucket.runs = SharedRooms(self._rows.tables, len(bucket.layout.rows_S))
        bucket.runs.hold(shared)

    def _filled(self, size: int, rows: tuple[int, ...]) -> Ints:
        return np.array(rows + (self._scratch_row,) * (size - len(rows)), np.int64)

    def _capture(self, bucket: _Bucket, form: _Form) -> None:
        """If there is memory for it."""
        recorded = self._tape.record(lambda: self._body(bucket, form))
        if recorded is not None:
            log.debug("captured a decode step: %s", form)
            shared = ", shared prefixes" if form.is_shared else ""
            self._graphs[form] = Captured(*recorded, f"graph of {form.size} rows, {form.drawing.value}{shared}")

    def _body(self, bucket: _Bucket, form: _Form) -> Tensor | None:
        """A step of the rows in `layout.rows_S`, whole, or up to the logits, which it returns then."""
        rows, rows_S = self._rows, bucket.layout.rows_S
        size = len(rows_S)
        bounds_host_S = np.full(size, self._longest_tokens - 1, np.int64)
        shared = bucket.runs.shared if form.is_shared and bucket.runs is not None else ()
        entries = bucket.layout.entries(rows, bounds_host_S, shared)
        x_SD, change_SD = self._model.walk(self._model.embed(entries.last_S), entries.batches)
        if form.drawing is Drawing.OUTSIDE:
            return self._tape.keep(self._model.logits(x_SD, change_SD))
        logits_SV = self._model.logits_to_draw(x_SD, change_SD)
        ids_S = draw_on_device(rows, logits_SV, rows_S, entries.ends_S, form.drawing)
        advance_rows(rows.positions_R, rows.last_R, self._ids_S, rows_S, entries.ends_S, ids_S, self._scratch_row)
        return None


def draw_on_device(rows: Rows, logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, drawing: Drawing) -> Tensor:
    """The next tokens of these rows, int64, which stand at `positions_S`; nothing is asked of the host."""
    if drawing is Drawing.GREEDY:
        return logits_SV.argmax(dim=-1)
    of_rows = rows.reals.dev, rows.ints.dev
    reals, ints, index_S = draw_parameters(rows_S, positions_S, *of_rows, Int.PROMPT_TOKENS)
    is_filtered = drawing is Drawing.FILTERED
    return sample(
        logits_SV,
        reals[Real.TEMPERATURE],
        ints[Int.TOP_K] if is_filtered else None,
        reals[Real.TOP_P] if is_filtered else None,
        reals[Real.MIN_P] if is_filtered else None,
        ints[Int.SEED],
        index_S,
    )
