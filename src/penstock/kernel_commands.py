"""`penstock profile kernels`: measure which implementation of a linear layer serves how many rows, and write it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.flags import Device, Dtype, LoadFormat, NativeKernels, Threads
from penstock.profiling.commands import loadable
from penstock.workload.commands import one_line_errors

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

    from penstock.models.decoder import Decoder
    from penstock.ops.dispatch import Cuts, Timing
    from penstock.runtime.measure_kernels import Weights


def kernels_command(
    model: Annotated[str, typer.Option(help="A Hugging Face directory, a bundled model, or a shape by name.")] = (
        "penstock-tiny"
    ),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The table to add to. [default: the user's, which engines read]")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    native_kernels: NativeKernels = False,
    load_format: LoadFormat = "auto",
    threads: Threads = None,
) -> None:
    """Time the linear layers of a model for 1 to 256 rows and write down which implementation serves how many."""
    from rich.console import Console

    console = Console(highlight=False)
    with one_line_errors():
        with loadable(model, load_format) as (path, chosen_format):
            decoder = load_plain(path, dtype, device, chosen_format, native_kernels=native_kernels, threads=threads)
        from penstock.ops.packed import PackedWeight
        from penstock.ops.tuned import names_on
        from penstock.runtime.kernel_table import default_path, key_of, write_cuts

        is_native = any(isinstance(tensor, PackedWeight) for tensor in decoder.tensors.values())
        names = names_on(decoder.device, is_native)
        key = key_of(decoder.device, decoder.dtype, is_native)
        console.print(f"{key.device}, {key.dtype}, {key.kernels}")
        found = list(measured(decoder, console))
        console.print(report(names, found))
        where = out or default_path()
        write_cuts(where, key, names, {weights.shape: cuts for weights, _, cuts in found})
        how = "" if out is None else f" with --kernel-table {out}"
        console.print(f"written: {where}; engines here read it{how}")


def load_plain(
    path: Path, dtype: str, device: str, load_format: str, *, native_kernels: bool, threads: int | None
) -> Decoder:
    """The model without a table, laid out as an engine with these options would have it."""
    import torch

    from penstock.models.read_spec import read_model_spec
    from penstock.models.weights import load_model, weight_bytes
    from penstock.ops import native
    from penstock.runtime.build import device_of, useful_threads

    where: torch.device = device_of(device)
    n_bytes = weight_bytes(read_model_spec(path), dtype)
    torch.set_num_threads(threads or useful_threads(n_bytes, torch.get_num_threads()))
    is_packed = native_kernels and where.type == "cpu" and native.prepare().core is not None
    return load_model(path, dtype=dtype, device=where, load_format=load_format, is_packed=is_packed)


def measured(decoder: Decoder, console: Console) -> Iterator[tuple[Weights, list[Timing], Cuts]]:
    """By shape of the model's weights: timings, and what follows from them."""
    from rich.progress import track

    from penstock.ops.dispatch import choose_cuts
    from penstock.runtime.measure_kernels import ROWS, measure, weights_of

    for weights in weights_of(decoder):
        shape = weights.shape
        found = track(
            measure(weights),
            f"{shape.outputs}x{shape.inputs}",
            total=len(ROWS),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        timings = list(found)
        yield weights, timings, choose_cuts(timings)


def report(names: Sequence[str], found: Sequence[tuple[Weights, list[Timing], Cuts]]) -> Table:
    """Where the switches are, and how many times the best time of each number of rows is taken, on average."""
    from rich.table import Table

    from penstock.ops.dispatch import ALWAYS, mean_loss

    table = Table(title="What serves how many rows; time over the best of each number of rows", title_justify="left")
    table.add_column("weights")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("one for all", justify="right")
    table.add_column("by table", justify="right")
    for weights, timings, cuts in found:
        single = min(mean_loss(timings, always) for always in ALWAYS)
        shape = weights.shape
        table.add_row(
            f"{shape.outputs} x {shape.inputs}" + (" gated" if shape.is_gated else ""),
            *spans(cuts),
            f"{single:.2f}",
            f"{mean_loss(timings, cuts):.2f}",
        )
    return table


def spans(cuts: Cuts) -> tuple[str, str, str]:
    """Rows of each implementation, as 1-3, 4-15, 16-."""
    starts = [1, cuts.second_from, cuts.third_from]
    ends = [cuts.second_from, cuts.third_from, None]
    first, second, third = (_span(start, end) for start, end in zip(starts, ends, strict=True))
    return first, second, third


def _span(start: int | None, end: int | None) -> str:
    if start is None or start == end:
        return "-"
    if end is None:
        return f"{start}-"
    return f"{start}" if end == start + 1 else f"{start}-{end - 1}"
