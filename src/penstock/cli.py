"""The command line. Every command imports what it needs when it runs, so that `penstock --help` is instant."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.core.errors import ConfigError, PenstockError
from penstock.flags import (
    CompileAhead,
    Device,
    Dtype,
    HostKvMemory,
    KernelTable,
    KvMemory,
    LoadFormat,
    MaxModelTokens,
    MaxRunning,
    NativeKernels,
    Policy,
    PrefixCaching,
    Quantize,
    SetOption,
    SharedPrefixAttention,
    SinkTokens,
    Softmax,
    StepLogPath,
    TensorParallel,
    Threads,
    TracePath,
    WindowTokens,
    add_settings,
)

BEGAN_S = time.monotonic()
app = typer.Typer(
    name="penstock",
    help="An inference system for streaming generative models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="A Hugging Face directory, or the name of a bundled model.")]
SlotName = Annotated[str | None, typer.Option(help="Replace this slot's policy.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A TOML file with options of the engine; a flag wins.")
]
SLOTS = ("order", "admit", "batch", "preempt", "retain", "predict")


def main() -> None:
    """Entry point: an error of ours is one line on standard error, never a stack trace."""
    try:
        app(standalone_mode=True)
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.split(".")[0] in _SERVE_MODULES:
            print(
                f"penstock: this command needs {missing.name}, which is not installed; "
                'install the extra with: pip install "penstock[serve]"',
                file=sys.stderr,
            )
            sys.exit(2)
        raise


_SERVE_MODULES = {"torch", "safetensors", "tokenizers", "minijinja", "uvicorn", "uvloop", "zmq", "prometheus_client"}


def _engine_options(
    config: Path | None,
    slots: dict[str, str | None],
    settings: list[str] | None,
    flags: dict[str, Any],
    is_given: Callable[[str], bool],
) -> Any:
    """Options of the engine: the file first, then the flags; `is_given` tells a flag from its default."""
    from penstock.options import make_options, read_config

    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in (read_config(config) if config else {}).items():
        if key in ("slots", "policy_options"):
            raise ConfigError(f"{config}: {key} has no place in the file; give each slot a table, as [order]")
        if key in SLOTS and isinstance(value, dict):
            table = dict(value)
            if "name" in table:
                names[key] = table.pop("name")
            options[key] = table
        else:
            values[key] = value
    for key, value in flags.items():
        if is_given(key) or key not in values:
            values[key] = value
    names |= {slot: name for slot, name in slots.items() if name is not None}
    add_settings(options, settings or ())
    return make_options({**values, "slots": names, "policy_options": options})


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


@app.command()
def serve(
    context: typer.Context,
    model: Model = "penstock-tiny",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen; 0 takes a free one.")] = 8000,
    executor: Annotated[str, typer.Option(help="torch, or simulated: predicted step times of --device.")] = "torch",
    dtype: Dtype = "auto",
    device: Device = "auto",
    kv_memory: KvMemory = None,
    host_kv_memory: HostKvMemory = "0",
    max_running: MaxRunning = 64,
    max_model_tokens: MaxModelTokens = None,
    window_tokens: WindowTokens = None,
    sink_tokens: SinkTokens = 4,
    tensor_parallel: TensorParallel = 1,
    max_queued_requests: Annotated[int, typer.Option(help="Most waiting requests; more get 503.")] = 4096,
    max_queued_tokens: Annotated[int, typer.Option(help="Most waiting prompt tokens; more get 503.")] = 4_194_304,
    prefix_caching: PrefixCaching = True,
    shared_prefix_attention: SharedPrefixAttention = "auto",
    look_ahead: Annotated[int, typer.Option(help="Steps planned while one runs.")] = 1,
    compile_ahead: CompileAhead = False,
    trace: TracePath = None,
    step_log: StepLogPath = None,
    load_format: LoadFormat = "auto",
    quantize: Quantize = "none",
    native_kernels: NativeKernels = False,
    kernel_table: KernelTable = "auto",
    softmax: Softmax = "exact",
    threads: Threads = None,
    profile: Annotated[
        str | None, typer.Option(help="What steps take, from `penstock profile`. [default: one that ships]")
    ] = None,
    policy: Policy = "default",
    order: SlotName = None,
    admit: SlotName = None,
    batch: SlotName = None,
    preempt: SlotName = None,
    retain: SlotName = None,
    predict: SlotName = None,
    set_: SetOption = None,
    config: ConfigFile = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="What clients call the model; may be repeated.")
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Ask clients for this key; may be repeated.", envvar="PENSTOCK_API_KEY")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with one key a line.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without a key.")] = False,
    vllm_metrics: Annotated[bool, typer.Option(help="/metrics shows vLLM's names too.")] = False,
    drain_timeout_s: Annotated[float, typer.Option(help="How long SIGTERM waits for open requests.")] = 30.0,
) -> None:
    """Serve a model over the OpenAI API."""
    import logging

    from penstock.serve import ServeOptions, read_api_keys
    from penstock.serve import serve as run_server

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its warnings are a line for each malformed request
    slots = {"order": order, "admit": admit, "batch": batch, "preempt": preempt, "retain": retain, "predict": predict}
    flags = {
        "model": model,
        "executor": executor,
        "dtype": dtype,
        "device": device,
        "load_format": load_format,
        "quantize": quantize,
        "native_kernels": native_kernels,
        "kernel_table": kernel_table,
        "softmax": softmax,
        "kv_memory": kv_memory,
        "host_kv_memory": host_kv_memory,
        "max_running": max_running,
        "max_model_tokens": max_model_tokens,
        "window_tokens": window_tokens,
        "sink_tokens": sink_tokens,
        "tensor_parallel": tensor_parallel,
        "max_queued_requests": max_queued_requests,
        "max_queued_tokens": max_queued_tokens,
        "prefix_caching": prefix_caching,
        "shared_prefix_attention": shared_prefix_attention,
        "look_ahead": look_ahead,
        "compile_ahead": compile_ahead,
        "trace": trace,
        "step_log": step_log,
        "threads": threads,
        "profile": profile,
        "policy": policy,
    }
    options = _engine_options(config, slots, set_, flags, lambda name: _is_given(context, name))
    front = ServeOptions(
        host=host,
        port=port,
        served_model_names=tuple(served_model_name or ()),
        api_keys=read_api_keys(api_key_file, tuple(api_key or ())),
        has_vllm_names=vllm_metrics,
        drain_timeout_s=drain_timeout_s,
        allow_open=insecure,
    )
    raise typer.Exit(run_server(options, front, BEGAN_S))


@app.command()
def complete(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    model: Annotated[str, typer.Option(help="A Hugging Face directory, or a bundled model.")] = "penstock-tiny",
    max_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option()] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantize: Quantize = "none",
    kv_memory: KvMemory = None,
) -> None:
    """Continue a text; it streams to the terminal."""
    from penstock.core.request import SamplingParams
    from penstock.terminal import run_complete

    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ())
    )
    run_complete(prompt, sampling, model, dtype=dtype, device=device, quantize=quantize, kv_memory=kv_memory)


@app.command()
def chat(
    model: Annotated[str, typer.Option(help="A Hugging Face directory, or a bundled model.")] = "penstock-tiny",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantize: Quantize = "none",
    kv_memory: KvMemory = None,
) -> None:
    """Talk with a model in the terminal; an empty line or Ctrl-D ends."""
    from penstock.core.request import SamplingParams
    from penstock.terminal import run_chat

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=0.95, seed=seed)
    run_chat(sampling, model, system, dtype=dtype, device=device, quantize=quantize, kv_memory=kv_memory)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(help="How many bursty requests to replay.")] = 200,
) -> None:
    """Start a server with the bundled model, stream two answers, replay bursty requests, print what clients saw."""
    from penstock.demo import run_demo

    raise typer.Exit(run_demo(requests))


@app.command()
def policies() -> None:
    """List presets, policy slots, policies and their options."""
    from penstock.listing import print_policies

    print_policies()


@app.command()
def systems() -> None:
    """List the published systems that work here, how to switch each on, and a command that shows its effect."""
    from penstock.listing import print_systems

    print_systems()


@app.command()
def demonstrate(
    system: Annotated[str, typer.Argument(help="A name that `penstock systems` lists.")],
    tokens: Annotated[int | None, typer.Option(min=10, help="Length of what it runs. [default: its own]")] = None,
    html: Annotated[Path | None, typer.Option(help="Write tables and plots to this page (burstgpt).")] = None,
) -> None:
    """Measure what a published system does, on and off in one run, on the bundled model."""
    from penstock.core.errors import UnknownName
    from penstock.demonstrations import DEMONSTRATIONS, PAGES
    from penstock.workload.commands import check_outputs

    if system not in DEMONSTRATIONS:
        raise UnknownName("demonstration", system, DEMONSTRATIONS)
    if html is None:
        DEMONSTRATIONS[system](tokens)
    elif system in PAGES:
        check_outputs(None, html)
        PAGES[system](tokens, html)
    else:
        raise ConfigError(f"{system} writes no page: leave out --html; these do: {', '.join(PAGES)}")


def _mount() -> None:
    from penstock.bench.commands import bench_app
    from penstock.profile_commands import profile_app
    from penstock.simulate import simulate_command
    from penstock.workload.commands import replay_command, report_command
    from penstock.workload.trace_commands import trace_app

    app.command("replay")(replay_command)
    app.command("simulate")(simulate_command)
    app.command("report")(report_command)
    app.add_typer(profile_app, name="profile")
    app.add_typer(trace_app, name="trace")
    app.add_typer(bench_app, name="bench")


_mount()

if __name__ == "__main__":
    main()
