"""`penstock profile`: measure what steps of a model take on this machine, and write a cost model."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.bench.shapes import SHAPES, folder_of
from penstock.core.request import SamplingParams
from penstock.cost.fit import fit
from penstock.cost.profile import Profile, write_profile
from penstock.flags import Device, Dtype, KvMemory, LoadFormat, NativeKernels, Quantize, Threads
from penstock.hardware import device_names
from penstock.options import EngineOptions
from penstock.profiling.points import grid
from penstock.runtime.memory_plan import MIB, parse_bytes
from penstock.workload.commands import one_line_errors

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.runtime.executor import TorchExecutor

HOST_TIER_BYTES = 256 * MIB  # to measure copies with


def profile_command(
    model: Annotated[str, typer.Option(help="A Hugging Face directory, a bundled model, or a shape by name.")] = (
        "penstock-tiny"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the profile.")] = Path("profile.json"),
    shipped: Annotated[bool, typer.Option("--list", help="List the profiles that ship, and measure nothing.")] = False,
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    device: Device = "auto",
    native_kernels: NativeKernels = False,
    kv_memory: KvMemory = None,
    max_running: Annotated[int, typer.Option(min=1, help="The largest batch to measure.")] = 64,
    largest_chunk: Annotated[int, typer.Option(min=1, help="The longest chunk to measure.")] = 2048,
    temperature: Annotated[float, typer.Option(help="0 is greedy; above, tokens are drawn behind top_p 0.95.")] = 0.0,
    load_format: LoadFormat = "auto",
    threads: Threads = None,
) -> None:
    """Measure steps of a model here, fit a cost model, check it on sizes it did not see, and write it.

    `penstock simulate --profile` and `penstock serve --profile` read it.
    """
    from rich.console import Console

    from penstock.runtime.build import build_executor

    console = Console()
    with one_line_errors():
        if shipped:
            _list_shipped(console)
            raise typer.Exit(0)
        how = {"dtype": dtype, "quantize": quantize, "native_kernels": native_kernels, "threads": threads}
        with loadable(model, load_format) as (path, chosen_format):
            executor = build_executor(
                path,
                dtype=dtype,
                quantize=quantize,
                device=device,
                native_kernels=native_kernels,
                kv_memory_bytes=None if kv_memory is None else parse_bytes(kv_memory),
                host_kv_memory_bytes=HOST_TIER_BYTES,
                max_rows=max_running + 1,
                load_format=chosen_format,
                torch_threads=threads,
            )
        try:
            profile = measured(
                executor,
                console,
                device=device,
                how={**how, "temperature": temperature},
                max_running=max_running,
                largest_chunk=largest_chunk,
                sampling=SamplingParams(temperature=temperature, top_p=0.95 if temperature else 1.0),
            )
        finally:
            executor.close()
        write_profile(out, profile)
        _show(profile, console)
        console.print(f"written: {out}", highlight=False)


def measured(
    executor: TorchExecutor,
    console: Console,
    *,
    device: str,
    how: dict[str, object],
    max_running: int,
    largest_chunk: int,
    sampling: SamplingParams,
) -> Profile:
    """Steps one by one, copies, the host's share, then steps of a running engine."""
    from rich.progress import track

    from penstock.core.plan import Toward
    from penstock.profiling.bench import Bench
    from penstock.profiling.host import host_times
    from penstock.profiling.serving import served_samples

    facts = executor.facts
    bounds = [spec.chunk_tokens for spec in facts.states if spec.chunk_tokens is not None]
    points = grid(max_running, facts.max_model_tokens, min([largest_chunk, *bounds]))
    bench = Bench(executor, sampling)
    found = [bench.measure(point) for point in track(points, "steps", console=console, transient=True)]
    slug, hardware = device_names(device)
    while executor.prepare():
        pass  # as a server does that stands idle before its first requests
    return fit(
        [sample for sample in found if sample is not None],
        model=facts.name,
        device=slug,
        hardware=hardware,
        versions={**versions(), **{name: str(value) for name, value in how.items()}},
        host=host_times(facts, executor.n_blocks, max_running),
        out_bytes_per_s=bench.bytes_per_s(Toward.HOST),
        in_bytes_per_s=bench.bytes_per_s(Toward.DEVICE),
        buckets=executor.graph_buckets,
        served=served_samples(executor, sampling, max_running),
    )


def _show(profile: Profile, console: Console) -> None:
    decode, chunk = profile.decode, profile.chunk
    lines = [
        f"{profile.model} on {profile.hardware}: {profile.n_samples} steps fitted",
        f"sizes that the fit never saw: decode {decode.held_out_frac:.1%} off on average, nine of ten within "
        f"{decode.band_frac:.1%}; with prompts {chunk.held_out_frac:.1%} and {chunk.band_frac:.1%}; beyond the largest "
        f"{decode.beyond_frac:.0%} and {chunk.beyond_frac:.0%}",
        f"in a running engine steps take {decode.serving_frac:.2f} and {chunk.serving_frac:.2f} times as long",
        f"one sequence: {decode.serving_frac * decode.curve.at(1) * 1e3:.2f} ms a step; the engine's own work: "
        f"{profile.host.step_s * 1e6:.0f} us, {profile.host.row_s * 1e6:.1f} more per row, "
        f"{profile.host.start_s * 1e6:.0f} per request",
    ]
    if profile.out_bytes_per_s and profile.in_bytes_per_s:
        out_gb, in_gb = profile.out_bytes_per_s / 1e9, profile.in_bytes_per_s / 1e9
        lines.append(f"to host memory {out_gb:.1f} GB/s, back {in_gb:.1f} GB/s")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _list_shipped(console: Console) -> None:
    from rich.table import Table

    from penstock.cost.shipped import shipped_profiles

    table = Table(title="Profiles that ship", title_justify="left")
    for column in ("--model", "--device", "measured on", "versions"):
        table.add_column(column)
    for profile in shipped_profiles():
        details = ", ".join(f"{name} {value}" for name, value in profile.versions.items())
        table.add_row(profile.model, profile.device, profile.hardware, details)
    console.print(table)


@contextmanager
def loadable(model: str, load_format: str) -> Iterator[tuple[Path, str]]:
    """Where a model lies and how to load it: a shape by name gets random weights."""
    if model in SHAPES:
        with folder_of(model) as folder:
            yield folder, "dummy"
    else:
        yield EngineOptions(model=model).model_path, load_format


def versions() -> dict[str, str]:
    import torch

    return {"torch": str(torch.__version__), "python": platform.python_version(), "penstock": version("penstock")}
