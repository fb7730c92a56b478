"""`penstock bench offline`: one workload through an engine in this process, and its share of the machine's limits."""

from __future__ import annotations

import json
import time
from array import array
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch
from msgspec import structs
from rich.console import Console
from rich.table import Table

from penstock.bench.bounds import Bound, MachineLimits, bound_of
from penstock.bench.limits import measure_limits
from penstock.bench.shapes import SHAPES, folder_of
from penstock.core.errors import ConfigError, EngineDied
from penstock.core.request import Request, SamplingParams
from penstock.engine.loop import Engine
from penstock.engine.timeline import TraceSummary, summarise
from penstock.engine.tracing import TracedEngine
from penstock.launch import OnPhase, make_engine
from penstock.llm import unbounded
from penstock.models.read_spec import read_model_spec
from penstock.models.weights import resolve_dtype
from penstock.ops import native
from penstock.options import EngineOptions
from penstock.workload.offline import OfflineWorkload, make_offline


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineReport:
    """seconds: from the first request to the last token, nothing of the start. cores_used: CPU time over `seconds`.

    trace: what a timeline of the run says, if one was asked for.
    """

    model: str
    workload: str
    device: str
    dtype: str
    quantize: str
    kernels: str
    threads: int
    requests: int
    input_tokens: int
    output_tokens: int
    steps: int
    seconds: float
    cores_used: float
    read_gb_per_s: float
    linear_gflop_per_s: float
    least_compute_s: float
    least_read_s: float
    trace: TraceSummary | None

    @property
    def rates(self) -> dict[str, float]:
        """Tokens per second, and shares of the limits: `share` is the least time that the machine allows, over ours."""
        return {
            "output_tok_per_s": self.output_tokens / self.seconds,
            "input_tok_per_s": self.input_tokens / self.seconds,
            "total_tok_per_s": (self.input_tokens + self.output_tokens) / self.seconds,
            "read_share": self.least_read_s / self.seconds,
            "compute_share": self.least_compute_s / self.seconds,
            "share": max(self.least_read_s, self.least_compute_s) / self.seconds,
        }

    def as_json(self) -> str:
        values = {"benchmark": "offline", **asdict(self), **self.rates}
        values["trace"] = None if self.trace is None else self.trace.as_dict()
        return json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in values.items()})


def run_offline(
    options: EngineOptions, workload_name: str, *, scale: float, length_scale: float, seed: int, on_phase: OnPhase
) -> OfflineReport:
    """Load the model, measure the machine, run the workload.

    options.model: as ever, or a name of `SHAPES`. The limits are measured with the threads that the options give, or
    with all. Raises ModelError; ConfigError for a workload that the model's context does not hold.
    """
    with ExitStack() as stack:
        if options.model in SHAPES:
            folder = stack.enter_context(folder_of(options.model))
            options = structs.replace(options, model=str(folder), load_format="dummy")
        spec = read_model_spec(options.model_path)
        workload = make_offline(
            workload_name, scale=scale, length_scale=length_scale, vocab_size=spec.vocab_size, seed=seed
        )
        most_tokens = min(spec.max_position_tokens, options.max_model_tokens or spec.max_position_tokens)
        if workload.longest_tokens > most_tokens:
            fits = int(100 * most_tokens / workload.longest_tokens) / 100
            raise ConfigError(
                f"{workload_name} has requests of {workload.longest_tokens} tokens, {options.model_name} takes "
                f"{most_tokens}: choose another workload, or --length-scale {fits:.2f}"
            )
        device = torch.device(_device_name(options.device))
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        limits = measure_limits(device, resolve_dtype(spec, options.dtype), options.quantize)
        engine = stack.enter_context(_Closing(make_engine(unbounded(options), on_phase))).engine
        seconds, cores_used = run_workload(engine, workload)
        bound = bound_of(
            spec,
            workload,
            limits,
            dtype=options.dtype,
            quantize=options.quantize,
            device_type=device.type,
            most_running=options.max_running,
            has_prefix_cache=options.prefix_caching,
        )
        trace = summarise(engine.tracer.timeline) if isinstance(engine, TracedEngine) else None
        steps = int(engine.counters()["steps_total"])
        dtype = str(resolve_dtype(spec, options.dtype)).removeprefix("torch.")
        options = structs.replace(options, dtype=dtype)
        return _report(options, workload, device, limits, bound, steps, seconds, cores_used, trace)


def print_report(report: OfflineReport, console: Console) -> None:
    """A table for people, then one line of JSON."""
    rates = report.rates
    table = Table(title=f"{report.workload} on {report.model}, {report.device}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("weights", report.dtype if report.quantize == "none" else f"{report.quantize}, {report.dtype}"),
        ("kernels", report.kernels),
        ("requests", f"{report.requests:,}"),
        ("tokens in, out", f"{report.input_tokens:,}, {report.output_tokens:,}"),
        ("time, s", f"{report.seconds:.2f} ({report.steps:,} steps)"),
        ("output tokens/s", f"{rates['output_tok_per_s']:.1f}"),
        ("input tokens/s", f"{rates['input_tok_per_s']:.1f}"),
        ("this machine reads, GB/s", f"{report.read_gb_per_s:.1f}"),
        ("this machine multiplies, GFLOP/s", f"{report.linear_gflop_per_s:,.0f}"),
        ("least time to read, s (share)", f"{report.least_read_s:.2f} ({rates['read_share']:.0%})"),
        ("least time to multiply, s (share)", f"{report.least_compute_s:.2f} ({rates['compute_share']:.0%})"),
    ):
        table.add_row(name, value)
    console.print(table)
    if report.trace is not None:
        timeline = Table(title="Where the time went", title_justify="left")
        timeline.add_column("")
        timeline.add_column("", justify="right")
        for name, value in report.trace.lines():
            timeline.add_row(name, value)
        console.print(timeline)
    print(report.as_json())


def run_workload(engine: Engine, workload: OfflineWorkload) -> tuple[float, float]:
    """(seconds from the first request to the last token, cores that the process used)."""
    requests = [
        Request(
            id=f"r{index}",
            prompt=array("i", request.prompt),
            sampling=SamplingParams(max_tokens=request.output_tokens, temperature=0.0, ignore_eos=True),
            arrival_s=0.0,
            seed=index,
        )
        for index, request in enumerate(workload.requests)
    ]
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for request in requests:
        engine.add(request, age_s=0.0)
    output_tokens = 0
    while engine.has_work:
        output_tokens += sum(len(update.tokens) for update in engine.step())
    output_tokens += sum(len(update.tokens) for update in engine.take_updates())
    seconds = time.perf_counter() - began_s
    if output_tokens != workload.output_tokens:
        raise EngineDied(f"the engine put out {output_tokens} tokens, the workload asks for {workload.output_tokens}")
    return seconds, (time.process_time() - began_cpu_s) / seconds


def _report(
    options: EngineOptions,
    workload: OfflineWorkload,
    device: torch.device,
    limits: MachineLimits,
    bound: Bound,
    steps: int,
    seconds: float,
    cores_used: float,
    trace: TraceSummary | None,
) -> OfflineReport:
    is_cpu = device.type == "cpu"
    return OfflineReport(
        model=options.model_name,
        workload=workload.name,
        device="cpu" if is_cpu else torch.cuda.get_device_name(device),
        dtype=options.dtype,
        quantize=options.quantize,
        kernels=native.state().reason.split(",")[0] if is_cpu else "torch",
        threads=torch.get_num_threads(),
        requests=len(workload.requests),
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        steps=steps,
        seconds=seconds,
        cores_used=cores_used,
        read_gb_per_s=limits.read_bytes_per_s / 1e9,
        linear_gflop_per_s=limits.linear_flop_per_s / 1e9,
        least_compute_s=bound.compute_s,
        least_read_s=bound.read_s,
        trace=trace,
    )


def _device_name(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


class _Closing:
    """An engine that is closed at the end of a block."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()
