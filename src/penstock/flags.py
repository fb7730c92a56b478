"""Flags that several commands share, so that each is described once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from penstock.core.errors import ConfigError

Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
Quantize = Annotated[str, typer.Option(help="none, fp8, int8 or int4: round the weights while they load.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
KvMemory = Annotated[str | None, typer.Option("--kv-memory", help="Size of the KV pool, as 4GiB. [default: a share]")]
HostKvMemory = Annotated[
    str, typer.Option("--host-kv-memory", help="Host memory for swapped sequences and evicted prefixes, as 16GiB.")
]
MaxRunning = Annotated[int, typer.Option(help="Most sequences at a time.")]
MaxModelTokens = Annotated[int | None, typer.Option(help="A shorter context than the model's.")]
WindowTokens = Annotated[
    int | None,
    typer.Option(help="StreamingLLM: keep the last N tokens and the sinks, without an end. [default: keep all]"),
]
SinkTokens = Annotated[int, typer.Option(help="First tokens that are kept beside --window-tokens.")]
TensorParallel = Annotated[
    int,
    typer.Option("--tensor-parallel", "--tensor-parallel-size", help="GPUs (CPU: processes) that share one model."),
]
NativeKernels = Annotated[bool, typer.Option(help="C++ kernels for the CPU, compiled on first use.")]
KernelTable = Annotated[
    str, typer.Option(help="What `penstock profile kernels` wrote: auto (the user's file, if any), none, or a path.")
]
Softmax = Annotated[str, typer.Option(help="exact, or unified: decode with maxima of `penstock profile softmax`.")]
PrefixCaching = Annotated[bool, typer.Option(help="Share the state of equal prompt prefixes.")]
CompileAhead = Annotated[
    bool, typer.Option(help="On a GPU, compile all kernels that the model can meet while it starts, beside it.")
]
TracePath = Annotated[
    str | None,
    typer.Option("--trace", help="Write a timeline of host and device here, for Perfetto, when the engine closes."),
]
StepLogPath = Annotated[
    str | None,
    typer.Option("--step-log", help="Write a line per step here, for `penstock simulate --replay-log`."),
]
SharedPrefixAttention = Annotated[
    str,
    typer.Option(
        help="Read a prefix that sequences share once for all: auto (on where there is a kernel for it), on or off."
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads of the engine. [default: all cores]")]
Policy = Annotated[str, typer.Option("--policy", help="A preset of policies; see `penstock policies`.")]
LoadFormat = Annotated[str, typer.Option(help="auto, or dummy: random weights from config.json.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SLOT.OPTION=VALUE", help="Set an option of a policy; may be repeated."),
]


def add_settings(options: dict[str, dict[str, object]], settings: Iterable[str]) -> None:
    """Put what `--set` says into options of policies, slot -> option -> text. Raises ConfigError for another form."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        slot, dot, option = name.partition(".")
        if not equals or not dot:
            raise ConfigError(
                f"--set {setting!r} has not the form SLOT.OPTION=VALUE, as in --set batch.budget_tokens=4096"
            )
        options.setdefault(slot, {})[option] = text
