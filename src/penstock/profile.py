"""`penstock profile`: measure what steps of a model take on this machine, and write a cost model for the simulator."""

from __future__ import annotations

import platform
import statistics
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.bench.shapes import SHAPES, folder_of
from penstock.core.errors import ConfigError
from penstock.core.plan import Chunk, DecodeGroup, Plan, RowStart
from penstock.core.request import Request, SamplingParams
from penstock.cost.load import Estimate, Floats, StepLoad
from penstock.cost.profile import Sample, fit, write_profile
from penstock.engine.loop import build_engine
from penstock.flags import Device, Dtype, KvMemory, LoadFormat, NativeKernels, Quantize, Threads
from penstock.options import EngineOptions
from penstock.policy.presets import build_policies
from penstock.runtime.build import build_executor
from penstock.runtime.memory_plan import parse_bytes
from penstock.sim.executor import STOP_TOKEN, JumpingClock, SimExecutor
from penstock.workload.commands import one_line_errors

if TYPE_CHECKING:
    from penstock.core.executor import Executor, ModelFacts

WARM_UPS, REPEATS = 1, 3
HOST_STEPS, HOST_ROWS = 300, 16
GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Point:
    """A step to measure: rows that decode behind `context` tokens each, and a chunk behind `before` tokens."""

    rows: int = 0
    context: int = 0
    chunk: int = 0
    before: int = 0


def grid(max_rows: int, max_tokens: int, largest_chunk: int) -> tuple[list[Point], list[Point]]:
    """(points to fit, points to check the fit on, which lie between and beyond these)."""
    longest = max_tokens - 1
    contexts = [n for n in (32, 512, 2048, 8192) if n < longest]
    rows = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= max_rows]
    chunks = [n for n in (1, 16, 64, 128, 256, 512, 1024, 2048) if n <= min(largest_chunk, longest)]
    fitted = [Point(rows=n, context=c) for n in rows for c in contexts]
    fitted += [Point(chunk=n, before=b) for n in chunks for b in (0, *contexts) if b + n < longest]
    fitted += [Point(rows=n, context=contexts[0], chunk=c) for n in rows[::2] for c in chunks[1::2]]
    checked = [Point(rows=n, context=c) for n in (3, 6, 12, 24, 48, 96, 192) for c in (200, 1300) if n < max_rows]
    checked += [Point(chunk=n, before=b) for n in (40, 200, 700) for b in (0, 300, 1500)]
    checked += [Point(rows=n, context=c, chunk=200) for n in (3, 12, 48) for c in (100, 900) if n < max_rows]
    return fitted, [point for point in checked if _fits(point, max_rows, longest, chunks[-1])]


def _fits(point: Point, max_rows: int, longest: int, largest_chunk: int) -> bool:
    is_short = point.context < longest and point.before + point.chunk < longest
    return is_short and point.chunk <= largest_chunk and point.rows + bool(point.chunk) <= max_rows


class Bench:
    """Runs points on an executor. Prompts are not computed: rows start as if their state lay in their blocks."""

    def __init__(self, executor: Executor, n_blocks: int) -> None:
        self._executor = executor
        self._n_blocks = n_blocks
        self._block_tokens = executor.facts.states[0].block_tokens
        self._n_plans = 0

    def measure(self, point: Point) -> Sample | None:
        """The median of some runs; None if the pool has no room for the point."""
        row_tokens = point.context + WARM_UPS + REPEATS + 1
        tables = list(self._tables([row_tokens] * point.rows + [point.before + point.chunk]))
        if len(tables) != point.rows + 1:
            return None
        seconds = []
        decode = DecodeGroup(tuple(range(point.rows)), version=self._n_plans)
        if point.rows:
            starts = tuple(_start(row, point.context, point.context - 1, tables[row]) for row in range(point.rows))
            self._run(Plan(starts=starts))
        for _ in range(WARM_UPS + REPEATS):
            plan = Plan(decode=decode)
            if point.chunk:
                stop = point.before + point.chunk
                plan = Plan(
                    decode=decode,
                    starts=(_start(point.rows, stop, point.before, tables[-1]),),
                    chunks=(Chunk(row=point.rows, start=point.before, stop=stop),),
                    sampling_chunks=(0,),
                )
            seconds.append(self._run(plan))
            self._run(Plan(ends=(point.rows,) * bool(point.chunk)))
        self._run(Plan(ends=tuple(range(point.rows))))
        keys = point.rows * (point.context + 1)
        load = StepLoad(
            decode_rows=point.rows,
            decode_keys=keys,
            chunk_tokens=point.chunk,
            chunk_keys=point.before + point.chunk if point.chunk else 0,
            chunk_pairs=point.chunk * (point.before + (point.chunk + 1) / 2),
            samples=point.rows + bool(point.chunk),
        )
        return Sample(load, statistics.median(seconds[WARM_UPS:]))

    def _tables(self, lengths: list[int]) -> Iterator[tuple[int, ...]]:
        at = 0
        for tokens in lengths:
            n = max(1, -(-tokens // self._block_tokens))
            if at + n > self._n_blocks:
                return
            yield tuple(range(at, at + n))
            at += n

    def _run(self, plan: Plan) -> float:
        """Device seconds of a plan; an empty one only changes rows."""
        self._n_plans += 1
        return self._executor.collect(self._executor.submit(plan)).device_s


def _start(row: int, tokens: int, computed: int, blocks: tuple[int, ...]) -> RowStart:
    ids = array("i", (3 + (7919 * (row + i)) % 250 for i in range(tokens)))
    return RowStart(
        row=row, tokens=ids, prompt_tokens=tokens, computed_tokens=computed, blocks=(blocks,), sampling=GREEDY, seed=0
    )


@dataclass(frozen=True, slots=True)
class _Free:
    """Steps that take no time: what is left is the host's work."""

    def step(self, load: StepLoad) -> Estimate:
        return Estimate(0.0, 0.0)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        return 0.0 * keys

    def host_s(self, load: StepLoad) -> float:
        return 0.0

    def describe(self) -> str:
        return "nothing takes time"


def host_seconds(facts: ModelFacts, n_blocks: tuple[int, ...]) -> float:
    """What the engine itself takes for a step of some decoding sequences, on this machine."""
    clock = JumpingClock()
    executor = SimExecutor(
        replace(facts, stop_token_ids=frozenset({STOP_TOKEN})), _Free(), clock, lambda seed: 2 * HOST_STEPS,
        max_rows=HOST_ROWS, host_bytes_per_s=1.0,
    )  # fmt: skip
    engine = build_engine(executor, n_blocks, build_policies(), clock=clock)
    for row in range(HOST_ROWS):
        sampling = SamplingParams(max_tokens=HOST_STEPS + 20, temperature=0.0, ignore_eos=True)
        engine.add(Request(id=str(row), prompt=array("i", [row + 3] * 8), sampling=sampling, seed=row))
    for _ in range(10):
        engine.step()
    began_s = time.perf_counter()
    for _ in range(HOST_STEPS):
        engine.step()
    return (time.perf_counter() - began_s) / HOST_STEPS


def profile_command(
    model: Annotated[str, typer.Option(help="A Hugging Face directory, a bundled model, or a shape by name.")] = (
        "penstock-tiny"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the profile.")] = Path("profile.json"),
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    device: Device = "auto",
    native_kernels: NativeKernels = False,
    kv_memory: KvMemory = None,
    max_running: Annotated[int, typer.Option(min=1, help="The largest batch to measure.")] = 64,
    largest_chunk: Annotated[int, typer.Option(min=1, help="The longest chunk to measure.")] = 2048,
    load_format: LoadFormat = "auto",
    threads: Threads = None,
) -> None:
    """Measure steps of a model here, fit a cost model, check it on others, and write it for `penstock simulate`."""
    from rich.console import Console
    from rich.progress import track

    console = Console()
    with one_line_errors():
        how = {"dtype": dtype, "quantize": quantize, "native_kernels": native_kernels, "threads": threads}
        with loadable(model, load_format) as (path, chosen_format):
            executor = build_executor(
                path,
                dtype=dtype,
                quantize=quantize,
                device=device,
                native_kernels=native_kernels,
                kv_memory_bytes=None if kv_memory is None else parse_bytes(kv_memory),
                max_rows=max_running + 1,
                load_format=chosen_format,
                torch_threads=threads,
            )
        try:
            facts = executor.facts
            if len(facts.states) > 1:
                raise ConfigError(f"{facts.name} has {len(facts.states)} state groups; profiles are of models with one")
            bench = Bench(executor, executor.n_blocks[0])
            fitted, checked = grid(max_running, facts.max_model_tokens, largest_chunk)
            points = [*fitted, *checked]
            samples = [bench.measure(point) for point in track(points, "steps", console=console, transient=True)]
            profile = fit(
                [sample for sample in samples[: len(fitted)] if sample is not None],
                [sample for sample in samples[len(fitted) :] if sample is not None],
                model=facts.name,
                device=device_name(device),
                versions={**versions(), **{name: str(value) for name, value in how.items()}},
                host_s=host_seconds(facts, executor.n_blocks),
            )
        finally:
            executor.close()
        write_profile(out, profile)
        console.print(
            f"{profile.model} on {profile.device}: {profile.n_samples} steps fitted; on others the error is "
            f"{profile.held_out_frac:.1%} on average, {profile.band_frac:.1%} or less for nine of ten",
            highlight=False,
        )
        one_ms, host_us = profile.decode.at(1) * 1e3, profile.host_s * 1e6
        console.print(f"one step of one sequence: {one_ms:.2f} ms, of the host in it {host_us:.0f} us", highlight=False)
        console.print(f"written: {out}", highlight=False)


@contextmanager
def loadable(model: str, load_format: str) -> Iterator[tuple[Path, str]]:
    """Where a model lies and how to load it: a shape by name gets random weights."""
    if model in SHAPES:
        with folder_of(model) as folder:
            yield folder, "dummy"
    else:
        yield EngineOptions(model=model).model_path, load_format


def device_name(device: str) -> str:
    """What computes: an accelerator's name, or the processor's."""
    import torch

    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    import torch

    return {"torch": str(torch.__version__), "python": platform.python_version(), "penstock": version("penstock")}
