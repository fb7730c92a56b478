"""Which variants of the Triton kernels a model can meet.

Theory. Triton compiles a kernel once for each set of compile-time constants and, for the other arguments, types and
whether a number is 1 or a multiple of 16. Kernels are chosen by a few limits on the tokens, rows, keys and expert
visits of a step, and arguments that change from step to step are not specialized; so what a model can meet is bounded.
A decoder with two layers of each kind (the second adds what the first leaves), made of tensors without memory, is taken
through steps on both sides of each limit, while a hook notes what would be compiled and launches nothing.

The hook and the driver are switches of the whole process: use a process of its own (`compile_ahead`).

Shape letters: T tokens, S segments, B blocks of the longest table, K sinks, N rows that want logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from penstock.core.executor import StateSpec
from penstock.models.decoder import Decoder
from penstock.models.facts import model_facts
from penstock.models.families.family import WeightNames
from penstock.models.packing import Packer, packing_of
from penstock.models.read_spec import read_model_spec
from penstock.models.sharding import rank_parameters, spec_of_rank
from penstock.models.spec import ExpertsSpec, LayerSpec, ModelSpec, Shard
from penstock.models.streaming import with_sinks
from penstock.models.weights import resolve_dtype
from penstock.ops.advance_rows import advance_rows
from penstock.ops.batch import SegmentBatch, SinkBatch
from penstock.ops.draw_parameters import draw_parameters
from penstock.ops.paged_attention.triton import LEAST_PART_KEYS, MOST_PARTS
from penstock.ops.place_segments import place_segments
from penstock.ops.sample import sample
from penstock.ops.sample.narrow import MOST_ROWS as MOST_NARROW_ROWS
from penstock.runtime.compile_ahead import Job
from penstock.runtime.rows import Int, Real
from penstock.runtime.step import HEAD_POSITIONS

META = torch.device("meta")
MOST_TOKENS = 8192  # kernels do not change beyond


class OfflineDriver:
    """Triton's view of a GPU that need not be there: kernels are compiled for it, and nothing runs."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel and what it is compiled for. data: as `JITFunction.preload` takes it."""

    kernel: Any
    key: str
    data: str

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


@dataclass(frozen=True, slots=True)
class StepShape:
    """Keys that each decode row reads, and (tokens, keys) of each chunk."""

    decode_keys: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def lens(self) -> tuple[int, ...]:
        return (1,) * len(self.decode_keys) + tuple(tokens for tokens, _ in self.chunks)

    @property
    def keys(self) -> tuple[int, ...]:
        return self.decode_keys + tuple(keys for _, keys in self.chunks)


class Recorder:
    """Notes what Triton would compile in this process from now on, once each; nothing is launched any more."""

    def __init__(self, capability: int) -> None:
        self.found: dict[tuple[str, str], Variant] = {}
        triton.runtime.driver.set_active(OfflineDriver(capability))
        triton.knobs.runtime.jit_cache_hook = self._note

    def _note(self, *, key: str, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        kernel = fn.jit_function
        self.found.setdefault((kernel.fn.__name__, key), Variant(kernel, key, compile["specialization_data"]))
        return True  # handled: Triton neither compiles nor launches

    def close(self) -> None:
        triton.knobs.runtime.jit_cache_hook = None


def variants_of(job: Job) -> tuple[Variant, ...]:
    """All variants, those of the first steps first. Raises ModelError."""
    recorder = Recorder(job.capability)
    model = ShapedModel(job)
    for shape in step_shapes(model.spec, job.max_rows):
        model.step(shape)
    for rows in sizes(max(job.max_rows, HEAD_POSITIONS)):
        model.head(rows)
    for rows in sorted({1, 2, min(job.max_rows, MOST_NARROW_ROWS), job.max_rows}):
        model.sample(rows)
    recorder.close()
    return tuple(recorder.found.values())


def step_shapes(spec: ModelSpec, max_rows: int) -> Iterator[StepShape]:
    """Steps on both sides of every limit at which a kernel changes."""
    yield StepShape(chunks=((2, 2),))  # what the start runs, then what a first request meets
    yield StepShape(decode_keys=(3,))
    limits = [*sizes(MOST_TOKENS), *(size for layer in spec.layers for size in _visit_limits(layer))]
    for tokens in dict.fromkeys(limits):
        yield StepShape(chunks=((tokens, tokens),))
        yield StepShape(decode_keys=(3,), chunks=((tokens, tokens + 1),))
        if tokens <= max_rows:
            yield StepShape(decode_keys=(3,) * tokens)
    parts = 1
    while parts <= MOST_PARTS:  # the keys of decode rows are cut into so many parts
        keys = parts * LEAST_PART_KEYS
        yield StepShape(decode_keys=(keys,))
        yield StepShape(decode_keys=(keys,), chunks=((2, 2),))
        if max_rows > 1:
            yield StepShape(decode_keys=(keys, keys))
        parts *= 2


def sizes(most: int) -> Iterator[int]:
    """Powers of two, and one more than each, up to `most`."""
    size = 1
    while size <= most:
        yield size
        if size > 1 and size < most:
            yield size + 1
        size *= 2


def _visit_limits(layer: LayerSpec) -> Iterator[int]:
    """Tokens of which an expert gets 16 or 48 visits on average, and one more."""
    if isinstance(layer.mlp, ExpertsSpec):
        for visits in (16, 48):
            tokens = visits * layer.mlp.n_experts // layer.mlp.top_k
            yield from (tokens, tokens + 1)


class _ShapedPeers:
    """Ranks of which there is one, and tensors without memory."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def sum(self, x: Tensor) -> Tensor:
        return x

    def side_by_side(self, x_NV: Tensor) -> Tensor:
        return x_NV.repeat(1, self.shard.size)


class ShapedModel:
    """A decoder with two layers of each kind, and pools for it, of tensors without memory."""

    def __init__(self, job: Job) -> None:
        spec = read_model_spec(job.model)
        if job.window_tokens is not None:
            spec = with_sinks(spec, job.sink_tokens, job.window_tokens)
        dtype = resolve_dtype(spec, job.dtype)
        shard = Shard(0, job.n_ranks)
        own = spec_of_rank(spec, shard)
        facts = model_facts(
            own, "", block_tokens=job.block_tokens, kv_item_bytes=dtype.itemsize, weight_bytes=0,
            max_model_tokens=job.max_model_tokens,
        )  # fmt: skip
        kinds = {layer: index for index, layer in reversed(list(enumerate(own.layers)))}
        self.spec = replace(own, layers=tuple(kind for kind in kinds for _ in range(2)))
        whole = replace(spec, layers=tuple(spec.layers[index] for index in kinds.values() for _ in range(2)))
        packer = Packer(packing_of(dtype, META, job.quantize, False))
        self._decoder = Decoder(
            self.spec,
            {
                parameter.name: packer(parameter, torch.empty(parameter.shape, dtype=dtype, device=META))
                for parameter in rank_parameters(whole, WeightNames(), shard)
            },
            None if shard.size == 1 else _ShapedPeers(shard),
        )
        group_of = {layer: group for group, state in enumerate(facts.states) for layer in state.layers}
        self._states = [facts.states[group_of[index]] for index in kinds.values()]
        self._pools = [
            torch.empty(
                (2, job.n_blocks[group_of[index]], job.block_tokens, kind.attention.kv_heads, kind.attention.head_dim),
                dtype=dtype,
                device=META,
            )
            for kind, index in kinds.items()
            for _ in range(2)
        ]

    def step(self, shape: StepShape) -> None:
        """All layers, for tokens of this shape."""
        ids_T = torch.empty(sum(shape.lens), dtype=torch.int64, device=META)
        x_TD = self._decoder.embed(ids_T)
        for kind, state in enumerate(self._states):
            x_TD = self._decoder.run_layers(x_TD, batch_of(shape, state), self._pools, 2 * kind, 2 * kind + 2)

    def head(self, rows: int) -> None:
        """Final norm and head of so many rows."""
        x_ND = torch.empty((rows, self.spec.hidden_size), dtype=self._decoder.dtype, device=META)
        self._decoder.logits(x_ND)
        self._decoder.logits(x_ND, x_ND)

    def sample(self, rows: int) -> None:
        """Draws, without and with filters, and what stands around them in a captured step."""
        reals_N = torch.empty(rows, dtype=torch.float32, device=META)
        ints_N = torch.empty(rows, dtype=torch.int64, device=META)
        for dtype in dict.fromkeys((self._decoder.dtype, torch.float32)):  # captured, and where logits were worked on
            logits_NV = torch.empty((rows, self.spec.vocab_size), dtype=dtype, device=META)
            sample(logits_NV, reals_N, None, None, None, ints_N, ints_N)
            sample(logits_NV, reals_N, ints_N, reals_N, reals_N, ints_N, ints_N)
        reals_RC = torch.empty((rows, len(Real)), dtype=torch.float32, device=META)
        ints_RI = torch.empty((rows, len(Int)), dtype=torch.int64, device=META)
        draw_parameters(ints_N, ints_N, reals_RC, ints_RI, Int.PROMPT_TOKENS)
        advance_rows(ints_N, ints_N, ints_N.to(torch.int32), ints_N, ints_N, ints_N, rows)


def batch_of(shape: StepShape, state: StateSpec) -> SegmentBatch:
    """What the kernels of a state group get in such a step."""

    def ints(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(size, dtype=dtype, device=META)

    n_tokens, n_segments = sum(shape.lens), len(shape.lens)
    n_blocks = -(-max(shape.keys) // state.block_tokens)
    placed = place_segments(
        ints(n_segments), ints(n_segments), ints(n_segments, n_blocks, dtype=torch.int32), ints(n_segments),
        ints(n_segments), ints(n_tokens), None if n_tokens == n_segments else ints(n_tokens), None, state.block_tokens,
        state.window_tokens, n_blocks,
    )  # fmt: skip
    sinks = None
    if state.sink_tokens:
        seen_TK = torch.empty((n_tokens, state.sink_tokens), dtype=torch.bool, device=META)
        sinks = SinkBatch(slots_TK=ints(n_tokens, state.sink_tokens), is_seen_TK=seen_TK, positions_T=ints(n_tokens))
    return SegmentBatch(
        positions_T=placed.positions_T,
        slots_T=placed.slots_T,
        q_starts=ints(n_segments + 1, dtype=torch.int32),
        kv_lens=placed.kv_lens_S,
        tables_SB=placed.tables_SB,
        q_starts_host=tuple(accumulate(shape.lens, initial=0)),
        kv_lens_host=shape.keys,
        block_tokens=state.block_tokens,
        sinks=sinks,
    )
