"""The subcommands of `penstock bench`. Each imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.bench.shapes import SHAPES
from penstock.flags import (
    CompileAhead,
    Device,
    Dtype,
    KvMemory,
    LoadFormat,
    MaxRunning,
    NativeKernels,
    Policy,
    PrefixCaching,
    Quantize,
    SharedPrefixAttention,
    Threads,
    TracePath,
)
from penstock.workload.offline import OFFLINE

bench_app = typer.Typer(help="Measure speed, beside what this machine's limits allow.", no_args_is_help=True)


@bench_app.callback()
def _bench() -> None:
    """Keeps `offline` a subcommand while it is the only one."""


@bench_app.command("offline")
def offline_command(
    model: Annotated[
        str,
        typer.Option(help=f"A Hugging Face directory, a bundled model, or random weights: {', '.join(SHAPES)}."),
    ] = "penstock-tiny",
    workload: Annotated[str, typer.Option(help=f"One of {', '.join(OFFLINE)}.")] = "mixed256",
    scale: Annotated[float, typer.Option(help="A share of the work: of the requests, or of decode's answers.")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="A share of all lengths.")] = 1.0,
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    device: Device = "auto",
    native_kernels: NativeKernels = False,
    kv_memory: KvMemory = None,
    max_running: MaxRunning = 256,
    prefix_caching: PrefixCaching = True,
    shared_prefix_attention: SharedPrefixAttention = "auto",
    load_format: LoadFormat = "auto",
    threads: Threads = None,
    policy: Policy = "default",
    compile_ahead: CompileAhead = False,
    trace: TracePath = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
) -> None:
    """Run a workload through an engine at once: tokens per second, and the share of what this machine can do.

    The last line of standard output is JSON.
    """
    from rich.console import Console

    from penstock.bench.offline import print_report, run_offline
    from penstock.options import make_options

    options = make_options(
        {
            "model": model,
            "dtype": dtype,
            "quantize": quantize,
            "device": device,
            "native_kernels": native_kernels,
            "kv_memory": kv_memory,
            "max_running": max_running,
            "prefix_caching": prefix_caching,
            "shared_prefix_attention": shared_prefix_attention,
            "load_format": load_format,
            "threads": threads,
            "policy": policy,
            "compile_ahead": compile_ahead,
            "trace": trace,
        }
    )
    to_people = Console(stderr=True)

    def tell(name: str, seconds: float | None) -> None:
        to_people.print(name if seconds is None else f"{name}: {seconds:.2f} s", style="dim", highlight=False)

    report = run_offline(options, workload, scale=scale, length_scale=length_scale, seed=seed, on_phase=tell)
    print_report(report, Console())
