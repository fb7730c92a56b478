"""One step on any device: apply the plan to the rows, walk the layers, sample, remember.

Nothing here waits for the device or reads from it: what a step produces leaves as a `Readback`.

Shape letters: T tokens, D model width, N sampling rows, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from penstock.core.executor import ModelFacts, StateKind
from penstock.core.plan import Chunk, DecodeGroup, Plan
from penstock.ops.batch import SegmentBatch
from penstock.ops.sample import logprobs
from penstock.runtime import graphs, mixed_graphs
from penstock.runtime.block_copies import copy_blocks
from penstock.runtime.cascade import SharingRule
from penstock.runtime.decode_inputs import DecodeInputs
from penstock.runtime.graphs import DecodeGraphs, Drawing
from penstock.runtime.layout import Layout, group_runs, stretches
from penstock.runtime.mixed_graphs import MixedGraphs
from penstock.runtime.movers import Lane, Mover
from penstock.runtime.readback import KeysRead, LogprobsHost, Readback, Samples, Stopwatch
from penstock.runtime.rows import Known, Rows
from penstock.runtime.sampling import Draw
from penstock.runtime.sharing import ByState, Sharing
from penstock.runtime.transfer import Ints, fetch, send, send_all
from penstock.runtime.transforms import make_logits_stage

log = logging.getLogger(__name__)
REVIEW_STEPS = 256
HEAD_POSITIONS = 512  # prompt positions whose logits exist at once: bounds memory at 512 * vocabulary * 4 bytes


class Model(Protocol):
    """What a step needs of a decoder."""

    def embed(self, ids_T: Tensor) -> Tensor: ...

    def run_layers(self, x_TD: Tensor, batch: SegmentBatch, kv: Sequence[Tensor], first: int, stop: int) -> Tensor: ...

    def run_whole(
        self, x_TD: Tensor, batches: Sequence[SegmentBatch], kv: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]: ...

    def logits(self, x_ND: Tensor, change_ND: Tensor | None = None) -> Tensor: ...

    def logits_to_draw(self, x_ND: Tensor, change_ND: Tensor | None = None) -> Tensor: ...

    def review(self) -> bool:
        """Whether some layer computes otherwise from now on, so that what was captured is of no use."""
        ...

    @property
    def why_not_captured(self) -> str | None:
        """What keeps a decode step out of a CUDA graph; None: nothing. Asked on a GPU only."""
        ...

    @property
    def tile_tokens(self) -> int | None:
        """How many tokens of a prompt one program of attention takes, in all layers; None: it is not the same."""
        ...

    @property
    def has_peers(self) -> bool:
        """Other ranks have shares of it, and carry out the same steps."""
        ...


class Stepper:
    """Runs plans one after the other; owns the rows and, per row, the residual stream of an unfinished pass.

    On an accelerator there is one row more, and one block in every pool: a captured step of fewer rows than its bucket
    fills up with these.
    """

    def __init__(
        self,
        model: Model,
        facts: ModelFacts,
        *,
        max_rows: int,
        device: torch.device,
        lane: Lane | None = None,
        sharing: Sequence[SharingRule | None] = (),
    ) -> None:
        """sharing: when decode rows read a common prefix once, by state group (None: never); (): nowhere."""
        self._model = model
        self._facts = facts
        self._device = device
        self._runs = group_runs(facts.n_layers, facts.states)
        self._max_rows = max_rows
        n_rows = max_rows + (device.type != "cpu")
        self._rows = Rows(max_rows=n_rows, states=facts.states, max_model_tokens=facts.max_model_tokens, device=device)
        self._graphs: DecodeGraphs | None = None
        self._mixed: MixedGraphs | None = None
        self.tape: graphs.Tape | None = None  # where steps are captured
        self._pools: tuple[Tensor, ...] = ()
        self._mover = Mover(facts.states, device, lane)
        self._kept: dict[int, tuple[Chunk, Tensor]] = {}
        self._logits = make_logits_stage(facts, max_rows, device)
        self._decoding = DecodeInputs(self._rows, self._logits)
        self._n_steps = 0
        self._n_prepared = 0
        self._sharing = Sharing(self._rows, sharing) if any(sharing) else None
        self._full_group = next((g for g, state in enumerate(facts.states) if state.kind is StateKind.PAGED), None)

    def use_pools(self, pools: tuple[Tensor, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        """The state of each layer; the block index is the second dimension of every pool. With as many blocks of the
        host tier per state group. On an accelerator the last block of each pool is scratch: no plan names it.
        """
        self._pools = pools
        self._mover.use_pools(pools, n_host_blocks)
        if self._device.type == "cuda":
            self._use_graphs()

    def _use_graphs(self) -> None:
        """Capture steps from now on, anew; none if the model cannot be captured."""
        self._graphs = self._mixed = self.tape = None
        why_not = self._model.why_not_captured
        if why_not is not None:
            log.warning("steps run kernel by kernel, not as CUDA graphs: %s", why_not)
            return
        for tables, state in zip(self._rows.tables, self._facts.states, strict=True):
            tables.write([(self._max_rows, (self._pools[state.layers[0]].shape[1] - 1,))], ())
        model = graphs.Model(
            embed=self._model.embed,
            walk=self._walk_whole,
            logits=self._model.logits,
            logits_to_draw=self._model.logits_to_draw,
        )
        has_peers = self._model.has_peers
        self.tape = tape = graphs.Tape(self._device, self._max_rows + mixed_graphs.MOST_CHUNKS, must_record=has_peers)
        where = self._rows, self._max_rows, self._facts.max_model_tokens, tape
        self._graphs = DecodeGraphs(model, *where, can_share=self._sharing is not None)
        tile_tokens = self._model.tile_tokens
        if tile_tokens is not None and not has_peers:  # what is captured depends on free memory, and ranks must agree
            self._mixed = MixedGraphs(model, self._facts, self._rows, self._max_rows, tile_tokens, tape)

    @property
    def graph_buckets(self) -> tuple[int, ...]:
        return () if self._graphs is None else self._graphs.sizes

    def close(self) -> None:
        """Give the pools of both tiers back."""
        self._pools, self._graphs, self._mixed, self.tape = (), None, None, None
        self._mover.close()

    def prepare(self) -> bool:
        """Capture one form of step that was not met yet, on the scratch row; whether there are more to capture."""
        if self._graphs is None or self.tape is None or not self.tape.has_room():
            return False
        try:
            is_one = self._graphs.prepare() or (self._mixed is not None and self._mixed.prepare())
            self.tape.wait()
        except torch.OutOfMemoryError as full:
            self.tape.note_full(str(full))
            is_one = False
        if is_one:
            self._n_prepared += 1
        elif self._n_prepared:
            log.info("captured %d kinds of steps while there was nothing to do", self._n_prepared)
            self._n_prepared = 0
        return is_one

    def run(self, plan: Plan, known: Sequence[Known]) -> Readback:
        """Carry out one plan. known: the ids of each of `plan.starts`."""
        watch = Stopwatch(self._device)
        self._apply(plan, known)
        if plan.is_empty:
            watch.stop()
            return Readback(watch=watch, moved=self._mover.reporter())
        self._n_steps += 1
        if self._n_steps % REVIEW_STEPS == 0 and self._model.review() and self._graphs is not None:
            self._use_graphs()
        keys = self._keys_read(plan.decode)
        if self._graphs is not None and not plan.chunks:
            drawn = self._decode_by_graph(plan.decode, self._graphs)
            watch.stop()
            return Readback(watch=watch, how=self._graphs.how, samples=drawn, moved=self._mover.reporter(), keys=keys)
        if self._mixed is not None and self._mixed.can_run(plan) and not self._wants_prompt_logprobs(plan):
            samples = self._mixed_by_graph(plan, self._mixed)
            watch.stop()
            return Readback(watch=watch, how=self._mixed.how, samples=samples, moved=self._mover.reporter(), keys=keys)
        whole = self._layout(plan)
        x_TD = self._walk(plan, whole, self._enter(plan))
        self._keep_unfinished(plan, whole, x_TD)
        prompt_logprobs = self._prompt_logprobs(plan, whole, x_TD)
        samples = self._sample(plan, whole, x_TD)
        watch.stop()
        return Readback(
            watch=watch, samples=samples, prompt_logprobs=prompt_logprobs, moved=self._mover.reporter(), keys=keys
        )

    def _decode_by_graph(self, group: DecodeGroup, captured: DecodeGraphs) -> Samples:
        """A step of nothing but decode rows."""
        drawing, members = self._decoding.drawing(group)
        found = captured.run(group, drawing, self._shared(group))
        if drawing is Drawing.OUTSIDE:
            return self._draw_alone(group, found)
        self._rows.positions_host_R[members] += 1
        return Samples(fetch(found), (), None)

    def _mixed_by_graph(self, plan: Plan, captured: MixedGraphs) -> Samples | None:
        """A step with chunks of prompts, all of them through all layers."""
        sampling = [plan.chunks[index] for index in plan.sampling_chunks]
        rows = np.array([*plan.decode.rows, *(chunk.row for chunk in sampling)], np.int64)
        tokens = np.array([1] * plan.decode.tokens + [chunk.tokens for chunk in sampling], np.int64)
        drawing = graphs.drawing_of(rows, self._rows, self._logits) if len(rows) else Drawing.PLAIN
        ids = np.concatenate([self._ids(chunk) for chunk in plan.chunks])
        found = captured.run(plan, ids, drawing, self._shared(plan.decode) if plan.decode.rows else ())
        if not len(rows):
            return None
        if drawing is Drawing.OUTSIDE:
            draw = Draw(rows, self._rows, self._logits)
            positions_N = self._rows.positions_R.index_select(0, draw.members_N) + send(tokens, self._device)
            return self._finish(draw, found, positions_N, tokens)
        self._rows.positions_host_R[rows] += tokens
        return Samples(fetch(found), (), None)

    def _draw_alone(self, group: DecodeGroup, logits_NV: Tensor) -> Samples:
        """Draw for the members of a decode group and remember what was drawn."""
        draw = self._decoding.draw(group)
        positions_N = self._rows.positions_R.index_select(0, draw.members_N) + 1
        return self._finish(draw, logits_NV, positions_N, np.ones_like(draw.members_host_N))

    def _shared(self, group: DecodeGroup) -> ByState:
        return () if self._sharing is None else self._sharing.of(group)

    def _keys_read(self, group: DecodeGroup) -> KeysRead:
        """By the decode rows, in one layer of the first group that reads everything."""
        full = self._full_group
        if full is None or not group.rows:
            return KeysRead()
        members = self._decoding.layout(group).rows_host_S
        n_keys = int(self._rows.positions_host_R[members].sum()) + len(members)
        shared = self._shared(group)
        some = shared[full] if shared else None
        n_saved = 0 if some is None else some.saved_tokens
        return KeysRead(n_keys - n_saved, n_saved)

    def _walk_whole(self, x_TD: Tensor, batches: Sequence[SegmentBatch]) -> tuple[Tensor, Tensor | None]:
        """See `graphs.Walk`: what a captured step does instead of `_walk`, for which layers may be cut anywhere."""
        by_layer = [
            batches[stretch.group]
            for stretch in stretches([(0, self._facts.n_layers)], self._runs, self._facts.n_layers)
            for _ in range(stretch.first, stretch.stop)
        ]
        return self._model.run_whole(x_TD, by_layer, self._pools)

    def _apply(self, plan: Plan, known: Sequence[Known]) -> None:
        for row in plan.ends:
            self._kept.pop(row, None)
        self._mover.move_out(plan)
        self._rows.apply(plan, known)
        self._logits.follow(plan, known)
        self._mover.move_in(plan)
        self._mover.hold_steps(plan)
        copy_blocks(plan.copies, self._facts.states, self._pools)
        if plan.chunks:
            placed = np.array([(chunk.row, chunk.start) for chunk in plan.chunks], np.int64)
            self._rows.place(placed[:, 0], placed[:, 1])

    def _layout(self, plan: Plan) -> Layout:
        """All segments of the step: decode rows, then chunks."""
        decoding = self._decoding.layout(plan.decode)
        if not plan.chunks:
            return decoding
        chunks = np.array([(chunk.row, chunk.tokens) for chunk in plan.chunks], np.int64)
        rows = np.concatenate((decoding.rows_host_S, chunks[:, 0]))
        return Layout(rows, np.concatenate((decoding.lens_host_S, chunks[:, 1])), self._device)

    def _enter(self, plan: Plan) -> Tensor:
        """What enters the first stretch of each segment: embeddings, or what an unfinished pass left."""
        fresh = [chunk for chunk in plan.chunks if chunk.first_layer == 0]
        lens = [chunk.tokens for chunk in fresh]
        ids = []
        if plan.decode.rows:
            lens.insert(0, plan.decode.tokens)
            ids.append(self._rows.last_R.index_select(0, self._decoding.layout(plan.decode).rows_S))
        if fresh:
            ids.append(send(np.concatenate([self._ids(chunk) for chunk in fresh]), self._device))
        if len(fresh) == len(plan.chunks):
            return self._model.embed(torch.cat(ids))
        parts = iter(torch.split(self._model.embed(torch.cat(ids)), lens) if ids else ())
        entering = [next(parts)] if plan.decode.rows else []
        entering += [next(parts) if chunk.first_layer == 0 else self._resume(chunk) for chunk in plan.chunks]
        return torch.cat(entering)

    def _ids(self, chunk: Chunk) -> Ints:
        known = self._rows.known(chunk.row)
        assert chunk.stop <= len(known), f"{chunk} goes beyond the {len(known)} tokens that its row knows"
        return known[chunk.start : chunk.stop].astype(np.int64)

    def _resume(self, chunk: Chunk) -> Tensor:
        assert chunk.row in self._kept, f"{chunk} continues a pass that row {chunk.row} has not begun"
        done, x_TD = self._kept.pop(chunk.row)
        same = (done.start, done.stop, done.stop_layer) == (chunk.start, chunk.stop, chunk.first_layer)
        assert same, f"{chunk} does not continue {done}"
        return x_TD

    def _walk(self, plan: Plan, whole: Layout, x_TD: Tensor) -> Tensor:
        """Run the layers. The decode rows are one party, each chunk is another; a stretch runs some of them."""
        n_layers = self._facts.n_layers
        parties = [slice(0, plan.decode.tokens)] if plan.decode.rows else []
        spans = [(0, n_layers)] if plan.decode.rows else []
        for segment, chunk in enumerate(plan.chunks, start=plan.decode.tokens):
            parties.append(slice(segment, segment + 1))
            spans.append((chunk.first_layer, self._stop_layer(chunk)))
        everyone = tuple(range(len(parties)))
        shared = self._shared(plan.decode) if plan.decode.rows else ()
        batches: dict[tuple[int, ...], tuple[tuple[SegmentBatch, ...], Tensor]] = {}
        batches_of_all: tuple[SegmentBatch, ...] = ()
        for stretch in stretches(spans, self._runs, n_layers):
            if stretch.active == everyone:
                batches_of_all = batches_of_all or whole.batches(self._rows, shared=shared)
                batch = batches_of_all[stretch.group]
                x_TD = self._model.run_layers(x_TD, batch, self._pools, stretch.first, stretch.stop)
                continue
            if stretch.active not in batches:
                segments = np.concatenate([np.arange(parties[p].start, parties[p].stop) for p in stretch.active])
                some = Layout(whole.rows_host_S[segments], whole.lens_host_S[segments], self._device)
                among = shared if plan.decode.rows and stretch.active[0] == 0 else ()  # the decode rows come first
                at = send(whole.tokens_of(segments), self._device)
                batches[stretch.active] = some.batches(self._rows, shared=among), at
            some_batches, at_T = batches[stretch.active]
            y_TD = self._model.run_layers(
                x_TD.index_select(0, at_T), some_batches[stretch.group], self._pools, stretch.first, stretch.stop
            )
            x_TD.index_copy_(0, at_T, y_TD)
        return x_TD

    def _stop_layer(self, chunk: Chunk) -> int:
        return self._facts.n_layers if chunk.stop_layer is None else chunk.stop_layer

    def _keep_unfinished(self, plan: Plan, whole: Layout, x_TD: Tensor) -> None:
        for segment, chunk in enumerate(plan.chunks, start=plan.decode.tokens):
            if self._stop_layer(chunk) < self._facts.n_layers:
                start, stop = whole.q_starts_host[segment : segment + 2]
                self._kept[chunk.row] = chunk, x_TD[start:stop].clone()  # not a view: that would keep the whole step

    def _wants_prompt_logprobs(self, plan: Plan) -> bool:
        return any(self._rows.start(chunk.row).sampling.prompt_logprobs is not None for chunk in plan.chunks)

    def _prompt_logprobs(self, plan: Plan, whole: Layout, x_TD: Tensor) -> dict[int, tuple[LogprobsHost, ...]]:
        """For chunks of rows that asked, the log-probability of each following token of the prompt."""
        found = {}
        for index, chunk in enumerate(plan.chunks):
            start = self._rows.start(chunk.row)
            count = start.sampling.prompt_logprobs
            if count is None or self._stop_layer(chunk) < self._facts.n_layers:
                continue
            following = self._rows.known(chunk.row)[chunk.start + 1 : min(chunk.stop + 1, start.prompt_tokens)]
            first = whole.q_starts_host[plan.decode.tokens + index]
            found[index] = tuple(
                self._following(x_TD[first + at :], following[at : at + HEAD_POSITIONS].astype(np.int64), count)
                for at in range(0, len(following), HEAD_POSITIONS)
            )
        return found

    def _following(self, x_TD: Tensor, ids_host: Ints, count: int) -> LogprobsHost:
        """Log-probabilities of `ids_host` after the first positions of x_TD."""
        ids = send(ids_host, self._device)
        logits = self._model.logits(x_TD[: len(ids_host)])
        return LogprobsHost.fetched(ids, logprobs(logits, ids, count), (count,) * len(ids_host))

    def _sample(self, plan: Plan, whole: Layout, x_TD: Tensor) -> Samples | None:
        """Sample for the decode rows and the sampling chunks; what they drew is their next input."""
        n_decode = plan.decode.tokens
        segments = np.array([n_decode + index for index in plan.sampling_chunks], np.int64)
        if not n_decode and not len(segments):
            return None
        if not len(segments):
            return self._draw_alone(plan.decode, self._model.logits(x_TD[:n_decode]))
        segments = np.concatenate((np.arange(n_decode), segments))
        tokens_host_N = whole.lens_host_S[segments]
        draw = Draw(whole.rows_host_S[segments], self._rows, self._logits)
        last_N, tokens_N = send_all((whole.q_starts_host[segments + 1] - 1, tokens_host_N), self._device)
        positions_N = self._rows.positions_R.index_select(0, draw.members_N) + tokens_N
        return self._finish(draw, self._model.logits(x_TD.index_select(0, last_N)), positions_N, tokens_host_N)

    def _finish(self, draw: Draw, logits_NV: Tensor, positions_N: Tensor, tokens_host_N: Ints) -> Samples:
        ids_N, logprobs_host = draw.draw(logits_NV, positions_N)
        self._rows.advance(draw.members_host_N, tokens_host_N, draw.members_N, positions_N, ids_N)
        return Samples(fetch(ids_N.to(torch.int32)), draw.logprobs_at, logprobs_host)
