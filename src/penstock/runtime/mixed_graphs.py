"""Steps with prompts as CUDA graphs: one launch for decode rows and chunks of prompts together.

Theory. Kernel by kernel, the host needs 15 to 27 ms to launch a step of 28 to 32 layers, and the device is done with
320 tokens of it after 3 to 9 (H200, a 0.6B and an 8B model). So a step of few tokens is captured, as decode steps are
(`graphs.py`); with many tokens the device is the slower one, and they run kernel by kernel.

What differs from step to step comes in one buffer of integers: of each token its row, its place in its chunk and its
id (of a decode row's: -1, it stands on the device), which segments have one token, the tiles of the others, and who
draws. A graph has room for so many tokens and so many decode rows (`_Form`), and for `MOST_CHUNKS` chunks. Tokens that
are left over belong to the scratch row and to no segment: they go through the layers and write to the scratch block,
and nobody reads what becomes of them.

As with decode steps, the first step of a form runs kernel by kernel and the second one is captured; while there is
nothing to do, forms are captured that were not met yet (`prepare`).

Shape letters: T tokens, S places of decode rows, C places of chunks, G = S + C segments, N as many places that draw,
P tiles.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penstock.core.executor import ModelFacts
from penstock.core.plan import Chunk, Plan
from penstock.ops.advance_rows import advance_rows
from penstock.ops.batch import Placement
from penstock.runtime.graphs import Captured, Drawing, Model, SharedRooms, Tape, draw_on_device
from penstock.runtime.layout import Layout, OnDevice
from penstock.runtime.readback import KERNEL_BY_KERNEL
from penstock.runtime.rows import Rows
from penstock.runtime.sharing import ByState
from penstock.runtime.transfer import Ints, send

log = logging.getLogger(__name__)
MOST_TOKENS, MOST_TOKENS_SMALL = 2048, 4096
SMALL_LAYER_BYTES = 100 * 2**20  # of weights: with 4,096 tokens, too, the device is done with it before the host
MOST_CHUNKS = 16
MOST_GRAPHS = 384  # those that were used last are kept
MOST_PREPARED_ROWS = 256  # more come seldom
TOKENS = (16, 32, 64, 96, *range(128, 512, 64), *range(512, 2048, 128), *range(2048, MOST_TOKENS_SMALL + 1, 256))
DECODE_ROWS = (0, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


@dataclass(frozen=True, slots=True)
class _Form:
    """Steps of one form are one graph."""

    tokens: int
    decode_rows: int
    drawing: Drawing
    is_shared: bool


class _Room:
    """Where graphs of so many tokens and decode rows read what is in a step, and what those rows share."""

    def __init__(self, rows: Rows, n_tokens: int, n_decode: int, tile_tokens: int, scratch_row: int, longest: int):
        self._device = rows.device
        self._tables = rows.tables
        self._scratch_row = scratch_row
        self._tile_tokens = tile_tokens
        self.n_tokens, self.n_decode = n_tokens, n_decode
        n_segments = n_drawing = n_decode + MOST_CHUNKS
        n_tiles = n_tokens // tile_tokens + MOST_CHUNKS
        self._wide = [n_tokens, n_tokens, n_tokens, n_segments, n_segments, n_drawing, n_drawing, n_drawing]
        self._narrow = [n_segments + 1, n_decode, n_tiles, n_tiles]
        self._n_narrow = -(-sum(self._narrow) // 2)  # two of 32 bits in one of 64
        # q_starts lie at the beginning of the memory, aligned: kernels are compiled for that
        self._packed = torch.zeros(self._n_narrow + sum(self._wide), dtype=torch.int64, device=rows.device)
        narrow, wide = self._packed[: self._n_narrow].view(torch.int32), self._packed[self._n_narrow :]
        rows_T, offsets_T, self.ids_T, rows_G, lens_G, self.rows_N, self.last_N, self.tokens_N = torch.split(
            wide, self._wide
        )
        q_starts, singles_S, tile_segments_P, tile_firsts_P = torch.split(narrow[: sum(self._narrow)], self._narrow)
        self.rows_T = rows_T
        on_device = OnDevice(
            rows_S=rows_G, lens_S=lens_G, q_starts=q_starts, rows_T=rows_T, offsets_T=offsets_T,
            placement=Placement(
                singles_S=singles_S, tile_segments_P=tile_segments_P, tile_firsts_P=tile_firsts_P,
                tile_tokens=tile_tokens,
            ),
        )  # fmt: skip
        lens_host_G = np.array([1] * n_decode + [n_tokens] * MOST_CHUNKS, np.int64)
        self.layout = Layout(np.full(n_segments, scratch_row, np.int64), lens_host_G, rows.device, on_device)
        self.starts_host_G = np.maximum(longest - lens_host_G, 0)
        self._runs: SharedRooms | None = None

    @property
    def shared(self) -> ByState:
        """What decode rows share, as a captured step reads it."""
        assert self._runs is not None, "nothing is shared before `hold`"
        return self._runs.shared

    def hold(self, shared: ByState) -> None:
        """Fill in what decode rows share."""
        if self._runs is None:
            self._runs = SharedRooms(self._tables, self.n_decode)
        self._runs.hold(shared)

    def empty(self) -> None:
        """Hold a step of nobody: all tokens are left over."""
        self.fill(Plan(), np.empty(0, np.int64))

    def fill(self, plan: Plan, ids: Ints) -> None:
        """Hold this step. ids: of the tokens of all chunks."""
        wide = np.zeros(sum(self._wide), np.int64)
        narrow = np.zeros(2 * self._n_narrow, np.int32)
        rows_T, offsets_T, ids_T, rows_G, lens_G, rows_N, last_N, tokens_N = np.split(wide, np.cumsum(self._wide[:-1]))
        q_starts, singles_S, tile_segments_P, tile_firsts_P, _ = np.split(narrow, np.cumsum(self._narrow))
        n_decode, n_chunks = plan.decode.tokens, len(plan.chunks)
        chunk_rows = np.array([chunk.row for chunk in plan.chunks], np.int64)
        chunk_lens = np.array([chunk.tokens for chunk in plan.chunks], np.int64)
        n_used = n_decode + int(chunk_lens.sum())
        assert n_used <= self.n_tokens, f"{n_used} tokens do not go into {self.n_tokens}"
        assert n_chunks <= MOST_CHUNKS, f"{n_chunks} chunks in a step for {MOST_CHUNKS}"
        of_chunks = slice(self.n_decode, self.n_decode + n_chunks)

        rows_T[:] = self._scratch_row
        rows_T[:n_decode] = plan.decode.rows
        rows_T[n_decode:n_used] = np.repeat(chunk_rows, chunk_lens)
        chunk_starts = np.cumsum(chunk_lens) - chunk_lens
        offsets_T[n_decode:n_used] = np.arange(n_used - n_decode) - np.repeat(chunk_starts, chunk_lens)
        ids_T[:n_decode] = -1
        ids_T[n_decode:n_used] = ids

        rows_G[:] = self._scratch_row
        rows_G[:n_decode], rows_G[of_chunks] = plan.decode.rows, chunk_rows
        lens_G[:n_decode], lens_G[of_chunks] = 1, chunk_lens
        q_starts[1:] = np.cumsum(lens_G)
        singles_S[:] = tile_segments_P[:] = -1
        singles_S[:n_decode] = np.arange(n_decode)
        tiles = [
            (first, self.n_decode + c) for c, n in enumerate(chunk_lens) for first in range(0, n, self._tile_tokens)
        ]
        tiles.sort(reverse=True)  # those with the longest reach come first
        tile_firsts_P[: len(tiles)], tile_segments_P[: len(tiles)] = np.array(tiles, np.int32).reshape(-1, 2).T

        drawing = np.array(plan.sampling_chunks, np.int64)
        n_drawing = n_decode + len(drawing)
        rows_N[:] = self._scratch_row
        rows_N[:n_decode], rows_N[n_decode:n_drawing] = plan.decode.rows, chunk_rows[drawing]
        last_N[:n_decode] = np.arange(n_decode)
        last_N[n_decode:n_drawing] = n_decode + chunk_starts[drawing] + chunk_lens[drawing] - 1
        tokens_N[:n_decode], tokens_N[n_decode:n_drawing] = 1, chunk_lens[drawing]
        packed = np.concatenate((narrow.view(np.int64), wide))
        self._packed.copy_(send(packed, self._device), non_blocking=True)


class MixedGraphs:
    """Runs steps with prompts that are small enough. scratch_row: as for `DecodeGraphs`."""

    def __init__(
        self, model: Model, facts: ModelFacts, rows: Rows, scratch_row: int, tile_tokens: int, tape: Tape
    ) -> None:
        self._model = model
        self._n_layers = facts.n_layers
        self._longest_tokens = facts.max_model_tokens
        self._rows = rows
        self._scratch_row = scratch_row
        self._tile_tokens = tile_tokens
        self._tape = tape
        is_small = facts.weight_bytes <= SMALL_LAYER_BYTES * facts.n_layers
        self._tokens = [size for size in TOKENS if size <= (MOST_TOKENS_SMALL if is_small else MOST_TOKENS)]
        self._decode_rows = (*(size for size in DECODE_ROWS if size < scratch_row), scratch_row)
        self._rooms: dict[tuple[int, int], _Room] = {}
        self._graphs: OrderedDict[_Form, Captured] = OrderedDict()
        self._seen: set[_Form] = set()
        self._drawings = {Drawing.PLAIN: None}  # in the order in which they were met; the usual one is expected
        self._ids_N = torch.zeros(scratch_row + MOST_CHUNKS, dtype=torch.int32, device=rows.device)
        self.how = KERNEL_BY_KERNEL  # of the last step

    def can_run(self, plan: Plan) -> bool:
        """Whether the step is one of these: chunks through all layers, not too many of them, nor of tokens."""
        if not plan.chunks or len(plan.chunks) > MOST_CHUNKS:
            return False
        size = self._size(plan)
        if size is None:
            return False
        if self._tape.is_full and all(size != (form.tokens, form.decode_rows) for form in self._graphs):
            return False  # nothing to gain, and what is left over of a room costs time
        return all(chunk.first_layer == 0 and self._ends_last(chunk) for chunk in plan.chunks)

    def _ends_last(self, chunk: Chunk) -> bool:
        return chunk.stop_layer is None or chunk.stop_layer == self._n_layers

    def _size(self, plan: Plan) -> tuple[int, int] | None:
        """(tokens, decode rows) that the step has room in; None: in none."""
        n_decode = next(size for size in self._decode_rows if size >= plan.decode.tokens)
        least = max(plan.tokens, n_decode)
        n_tokens = next((size for size in self._tokens if size >= least), None)
        return None if n_tokens is None else (n_tokens, n_decode)

    def run(self, plan: Plan, ids: Ints, drawing: Drawing, shared: ByState) -> Tensor:
        """One step: new tokens of the decode rows and then of the chunks that draw, int32; or their logits if they draw
        outside. Good until the next step. ids: of the tokens of all chunks. shared: by the decode rows; (): nothing.
        """
        size = self._size(plan)
        assert size is not None, "ask `can_run` first"
        form = _Form(*size, drawing, bool(shared))
        self._drawings[drawing] = None
        room = self._room(*size)
        if shared:
            room.hold(shared)
        if form in self._seen and form not in self._graphs and self._tape.has_room():
            self._capture(room, form)
        room.fill(plan, ids)
        if form in self._graphs:
            captured = self._graphs[form]
            self._graphs.move_to_end(form)
            captured.graph.replay()
            self.how = captured.how
            logits_NV = captured.logits_SV
        else:
            self._seen.add(form)
            self.how = KERNEL_BY_KERNEL
            logits_NV = self._body(room, form)
        n_drawing = plan.decode.tokens + len(plan.sampling_chunks)
        return (self._ids_N if logits_NV is None else logits_NV)[:n_drawing]

    def prepare(self) -> bool:
        """Capture one form that was not met yet and is likely, if there is one; rows share nothing.

        The largest come first, so that the others fit into their memory.
        """
        forms = (
            _Form(n_tokens, n_decode, drawing, False)
            for drawing in self._drawings
            for n_decode in reversed(self._decode_rows)
            for n_tokens in reversed(self._tokens)
            if n_decode <= min(n_tokens, MOST_PREPARED_ROWS) and drawing is not Drawing.OUTSIDE
        )
        form = next((form for form in forms if form not in self._graphs), None)
        if form is None or len(self._graphs) >= MOST_GRAPHS:
            return False
        room = self._room(form.tokens, form.decode_rows)
        room.empty()
        self._body(room, form)
        self._capture(room, form)
        return True

    def _room(self, n_tokens: int, n_decode: int) -> _Room:
        size = n_tokens, n_decode
        if size not in self._rooms:
            place = self._tile_tokens, self._scratch_row, self._longest_tokens
            self._rooms[size] = _Room(self._rows, *size, *place)
        return self._rooms[size]

    def _capture(self, room: _Room, form: _Form) -> None:
        """If there is memory for it."""
        recorded = self._tape.record(lambda: self._body(room, form))
        if recorded is None:
            return
        shared = ", shared prefixes" if form.is_shared else ""
        how = f"graph of {form.tokens} tokens, {form.decode_rows} rows, {form.drawing.value}{shared}"
        self._graphs[form] = Captured(*recorded, how)
        log.debug("captured a step with prompts: %s", form)
        if len(self._graphs) > MOST_GRAPHS:
            oldest, _ = self._graphs.popitem(last=False)
            self._seen.discard(oldest)  # it is captured again when it comes twice

    def _body(self, room: _Room, form: _Form) -> Tensor | None:
        """The step that `room` holds, whole, or up to the logits, which it returns then."""
        rows = self._rows
        last_T = rows.last_R.index_select(0, room.rows_T)
        x_TD = self._model.embed(torch.where(room.ids_T < 0, last_T, room.ids_T))
        batches = room.layout.batches(rows, room.starts_host_G, room.shared if form.is_shared else ())
        x_TD, change_TD = self._model.walk(x_TD, batches)
        x_ND = x_TD.index_select(0, room.last_N)
        change_ND = None if change_TD is None else change_TD.index_select(0, room.last_N)
        if form.drawing is Drawing.OUTSIDE:
            return self._tape.keep(self._model.logits(x_ND, change_ND))
        logits_NV = self._model.logits_to_draw(x_ND, change_ND)
        positions_N = rows.positions_R.index_select(0, room.rows_N) + room.tokens_N
        ids_N = draw_on_device(rows, logits_NV, room.rows_N, positions_N, form.drawing)
        by_row = rows.positions_R, rows.last_R
        advance_rows(*by_row, self._ids_N, room.rows_N, positions_N, ids_N, self._scratch_row)
        return None
