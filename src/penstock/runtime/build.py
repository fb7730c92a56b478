"""From a model directory to an executor that is ready: the parts, joined in one place, each phase timed.

Torch is imported inside, so that its import is a phase that a user sees, and importing this module costs nothing.
"""

from __future__ import annotations

import logging
import math
import os
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.core.errors import ConfigError, UnknownName
from penstock.core.executor import StateKind
from penstock.core.plan import Chunk, DecodeGroup, Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.models.spec import ALONE, ModelSpec, Shard
from penstock.runtime.cascade import RATES, SharingRule
from penstock.runtime.memory_plan import (
    MemoryPlan,
    default_kv_bytes,
    free_ram_bytes,
    plan_memory,
    useful_kv_bytes,
    with_host_tier,
)
from penstock.runtime.rank_messages import Fits

if TYPE_CHECKING:
    import torch

    from penstock.core.executor import Executor, ModelFacts
    from penstock.models.decoder import Decoder
    from penstock.runtime.executor import NewPool, TorchExecutor
    from penstock.runtime.movers import Lane
    from penstock.runtime.ranks import Ranks

log = logging.getLogger(__name__)
THREAD_BYTES = 32 * 2**20
STREAM_TOKENS = 2**20  # where a stream ends when nobody said: block tables are made for so many tokens
SHARED_ATTENTION = ("auto", "on", "off")
OnPhase = Callable[[str, float], None]  # (what was done, seconds)
OnMemory = Callable[[MemoryPlan], None]


def _ignore(*_: object) -> None:
    """Nobody asked to be told."""


def build_executor(
    model_dir: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    kv_memory_bytes: int | None = None,
    host_kv_memory_bytes: int = 0,
    max_rows: int = 64,
    block_tokens: int = 16,
    load_format: str = "auto",
    quantize: str = "none",
    native_kernels: bool = False,
    kernel_table: str = "none",
    softmax: str = "exact",
    max_model_tokens: int | None = None,
    sink_tokens: int = 0,
    window_tokens: int | None = None,
    torch_threads: int | None = None,
    compile_ahead: bool = False,
    shared_prefix_attention: str = "auto",
    lane: Lane | None = None,
    ranks: Ranks | None = None,
    on_phase: OnPhase = _ignore,
    on_memory: OnMemory = _ignore,
) -> TorchExecutor:
    """Load a model and make it ready to run plans.

    Args:
        kv_memory_bytes: of all ranks; None takes a share of what is free. host_kv_memory_bytes: of the host tier; 0:
            there is none.
        quantize: "fp8", "int8" or "int4": round the weights while they load.
        native_kernels: use the C++ kernels of the CPU, compiled on first use; quantized weights always do.
        kernel_table: which implementation of a linear layer serves how many rows; see `kernel_table.read_cuts`.
        softmax: "exact", or "unified": decode steps sum against maxima that `penstock profile softmax` found.
        max_model_tokens: a limit below that of the model.
        sink_tokens, window_tokens: keep only so many first and last tokens, without an end (StreamingLLM); None: all.
        torch_threads: threads of one operation on a CPU, of one rank; None chooses by the size of the model.
        compile_ahead: on a GPU, compile the kernels that the model can meet, in processes beside the start.
        shared_prefix_attention: read a prefix that decoding sequences share once for all of them, where that is
            faster: "on", "off", or "auto", which is on where there is a kernel for it.
        lane: where moves between the tiers are queued; None: what suits the device.
        ranks: those that run this model together with this one, each of which builds its own; None: this one is all.
        on_phase: told what was done and how long it took. on_memory: told the plan before weights and pool take memory.
    Raises: ModelError for the directory; ConfigError for options that do not fit the model or the memory.
    """
    with _phase("import torch", on_phase):
        import torch

        from penstock.models.facts import model_facts
        from penstock.models.read_spec import read_model_spec
        from penstock.models.sharding import spec_of_rank
        from penstock.models.streaming import with_sinks
        from penstock.models.weights import load_model, resolve_dtype, weight_bytes
        from penstock.ops import native
        from penstock.ops.lazy import has_triton
        from penstock.runtime.calibrate import with_unified_softmax
        from penstock.runtime.compile_ahead import CompilingAhead, Job, capability_of
        from penstock.runtime.executor import TorchExecutor
        from penstock.runtime.kernel_table import Tuning
    shard = ALONE if ranks is None else ranks.shard
    where = device_of(device, shard)
    if shared_prefix_attention not in SHARED_ATTENTION:
        raise UnknownName("shared_prefix_attention", shared_prefix_attention, SHARED_ATTENTION)
    with _phase("read config", on_phase):
        spec = read_model_spec(model_dir)
        if window_tokens is not None:
            spec = with_sinks(spec, sink_tokens, window_tokens)
        _check_options(max_rows, block_tokens, max_model_tokens, spec.max_position_tokens)
    own = spec_of_rank(spec, shard)
    facts = model_facts(
        own,
        Path(model_dir).resolve().name,
        block_tokens=block_tokens,
        kv_item_bytes=resolve_dtype(spec, dtype).itemsize,
        weight_bytes=weight_bytes(spec, dtype, quantize, where.type, shard),
        max_model_tokens=STREAM_TOKENS if max_model_tokens is None and window_tokens is not None else max_model_tokens,
    )
    n_cores = max(1, torch.get_num_threads() // shard.size)
    torch.set_num_threads(torch_threads or useful_threads(facts.weight_bytes, n_cores))
    wants_native = where.type == "cpu" and (native_kernels or quantize != "none")
    if wants_native:
        with _phase("CPU kernels", on_phase):
            native.prepare()
    is_packed = wants_native and native.core("packed_linear") is not None
    where_table = kernel_table if quantize == "none" else "none"  # integer weights have one implementation
    tuning = Tuning.read(where_table, own, where, resolve_dtype(spec, dtype), is_packed=is_packed)
    facts = replace(facts, weight_bytes=facts.weight_bytes + tuning.added_bytes)
    memory = _plan_memory(facts, where, kv_memory_bytes, host_kv_memory_bytes, max_rows, shard)
    peers = None
    if ranks is not None:
        with _phase("meet the other ranks", on_phase):
            agreed = ranks.agree(Fits(memory.n_blocks, memory.n_host_blocks))
            memory = replace(memory, n_blocks=agreed.n_blocks, n_host_blocks=agreed.n_host_blocks)
            peers = ranks.connect(where)
    on_memory(memory)
    ahead = None
    if compile_ahead and where.type == "cuda" and has_triton() and shard.rank == 0:  # other ranks meet the same
        n_blocks = tuple(n + 1 for n in memory.n_blocks)  # with the one that no plan names
        ahead = CompilingAhead(
            Job(
                model=str(model_dir),
                n_blocks=n_blocks,
                dtype=dtype,
                quantize=quantize,
                max_rows=max_rows,
                block_tokens=block_tokens,
                max_model_tokens=facts.max_model_tokens,
                window_tokens=window_tokens,
                sink_tokens=sink_tokens,
                capability=capability_of(where),
                n_ranks=shard.size,
            )
        )
    with _phase("load weights", on_phase):
        decoder = load_model(
            model_dir,
            dtype=dtype,
            device=where,
            load_format=load_format,
            quantize=quantize,
            is_packed=is_packed,
            spec=spec,
            tune=tuning.apply,
            peers=peers,
        )
    if softmax == "unified":
        decoder = with_unified_softmax(decoder, Path(model_dir), facts.max_model_tokens)
    facts = replace(facts, kernels=tuple(decoder.kernels.items()))
    slow = [op for op, kernel in facts.kernels if kernel not in ("native", "by table")]
    if wants_native and slow and shard.rank == 0:
        why = native.state().reason if peers is None else "a layer is one call only where no ranks add up within it"
        log.warning("not in C++ here, so slower than could be: %s (%s)", ", ".join(slow), why)
    new_pool = _pools_of(decoder, block_tokens)
    sharing = sharing_rules(own, facts, decoder.kernels.get("shared_attention"), shared_prefix_attention)
    executor = TorchExecutor(
        decoder, facts, new_pool=new_pool, max_rows=max_rows, device=where, lane=lane, sharing=sharing
    )
    if ahead is not None:
        executor.close_also(ahead.stop)
    try:
        with _phase("allocate KV", on_phase):
            executor.allocate(memory.n_blocks, memory.n_host_blocks)
        with _phase("warm up", on_phase):
            warm_up(executor)
    except BaseException:
        executor.close()
        raise
    return executor


def sharing_rules(
    spec: ModelSpec, facts: ModelFacts, kernel: str | None, choice: str = "on"
) -> tuple[SharingRule | None, ...]:
    """When rows read what they share once: by state group, None where a group keeps a window; (): never.

    kernel: what computes attention over shared keys; None: the model has no layer that could. choice: one of
    SHARED_ATTENTION. Raises ConfigError where it is "on", and what that gains is not known.
    """
    if choice == "off" or kernel is None or (choice == "auto" and kernel not in RATES):
        return ()
    if kernel not in RATES:
        raise ConfigError("shared_prefix_attention is on, but this device has no kernel for it; use auto or off")
    rules: list[SharingRule | None] = []
    for state in facts.states:
        attention = spec.layers[state.layers[0]].attention
        rule = SharingRule(
            rates=RATES[kernel],
            key_bytes=state.block_bytes // (state.block_tokens * len(state.layers)),
            key_flop=4 * attention.q_heads * attention.head_dim,
            row_bytes=2 * 4 * attention.q_heads * (attention.head_dim + 1),
        )
        rules.append(rule if state.kind is StateKind.PAGED else None)
    return tuple(rules)


def useful_threads(weight_bytes: int, n_cores: int) -> int:
    """Threads that pay: each should have weights to read for longer than threads take to wait for each other.

    With the bundled 14 MiB model, 4 samples of 120 tokens took 77 s with two threads and 6 s with one (transformers'
    generate, two cores busy with other work).
    """
    return max(1, min(n_cores, weight_bytes // THREAD_BYTES))


def warm_up(executor: Executor) -> None:
    """A prompt of two tokens and one decode step: whatever is slow only once happens now. Writes into block 0."""
    start = RowStart(
        row=0,
        tokens=array("i", (0, 0)),
        prompt_tokens=2,
        computed_tokens=0,
        blocks=((0,),) * len(executor.facts.states),
        sampling=SamplingParams(top_p=0.9),
        seed=0,
    )
    plans = (
        Plan(starts=(start,), chunks=(Chunk(row=0, start=0, stop=2),), sampling_chunks=(0,)),
        Plan(decode=DecodeGroup((0,))),
        Plan(ends=(0,)),
    )
    for ticket in [executor.submit(plan) for plan in plans]:
        executor.collect(ticket)


@contextmanager
def _phase(name: str, on_phase: OnPhase) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    on_phase(name, time.perf_counter() - start_s)


def device_of(name: str, shard: Shard = ALONE) -> torch.device:
    """By name, or what there is for "auto"; of several ranks on GPUs, each has the one of its number.

    Raises ConfigError if it is not usable here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if shard.size > 1 and name == "cuda":
        n_devices = torch.cuda.device_count()
        if n_devices < shard.size:
            raise ConfigError(
                f"--tensor-parallel {shard.size} takes as many GPUs, and {n_devices} are here; give a smaller number"
            )
        name = f"cuda:{shard.rank}"
        torch.cuda.set_device(shard.rank)  # Triton launches on the current one
    elif shard.size > 1 and name != "cpu":
        raise ConfigError(f"--tensor-parallel {shard.size} takes device cuda or cpu, not {name}: ranks number them")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without it says so with an assertion
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} is not usable here ({reason}); use cpu") from None
    return device


def _check_options(max_rows: int, block_tokens: int, max_model_tokens: int | None, model_tokens: int) -> None:
    for name, value in (("max_rows", max_rows), ("block_tokens", block_tokens)):
        if value < 1:
            raise ConfigError(f"{name} is {value}: give a positive number")
    if max_model_tokens is not None and not 2 <= max_model_tokens <= model_tokens:
        raise ConfigError(f"max_model_tokens is {max_model_tokens}: give 2 to {model_tokens}, the model's context")


def _plan_memory(
    facts: ModelFacts,
    device: torch.device,
    kv_bytes: int | None,
    host_kv_bytes: int,
    max_rows: int,
    shard: Shard,
) -> MemoryPlan:
    """What one rank takes: its share of what was asked for, and of the memory that ranks have in common."""
    import torch

    host_bytes = free_ram_bytes()
    if host_bytes is None:  # a system that does not say what is available: what is installed bounds it
        host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    host_bytes //= shard.size
    host_kv_bytes //= shard.size
    kv_bytes = None if kv_bytes is None else kv_bytes // shard.size
    is_cpu = device.type == "cpu"
    free_bytes = host_bytes if is_cpu else torch.cuda.mem_get_info(device)[0]
    free_bytes = max(0, free_bytes - facts.weight_bytes)  # they are loaded next
    default_bytes = default_kv_bytes(free_bytes, is_cpu=is_cpu, useful_bytes=useful_kv_bytes(facts, max_rows))
    plan = plan_memory(
        facts,
        free_bytes=free_bytes,
        default_kv_bytes=default_bytes,
        kv_bytes=kv_bytes,
        max_rows=max_rows,
        n_ranks=shard.size,
    )
    return with_host_tier(plan, host_kv_bytes, free_bytes - plan.kv_bytes if is_cpu else host_bytes)


def _pools_of(decoder: Decoder, block_tokens: int) -> NewPool:
    """Zeros, not uninitialized memory: a kernel may read padding and multiply it by zero."""
    import torch

    from penstock.ops.huge_pages import zeros_on_huge_pages

    def new_pool(layer: int, n_blocks: int) -> torch.Tensor:
        attention = decoder.spec.layers[layer].attention
        shape = 2, n_blocks, block_tokens, attention.kv_heads, attention.head_dim
        if decoder.device.type == "cpu":
            n_bytes = math.prod(shape) * decoder.dtype.itemsize
            return zeros_on_huge_pages(n_bytes).view(decoder.dtype).view(shape)
        return torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)

    return new_pool
