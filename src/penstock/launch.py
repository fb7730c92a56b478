"""Where the parts are joined: an executor for a model, an engine around it, and a process around that.

Everything below asks for what it needs as arguments; only here is it decided that the executor is the torch one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.core.errors import ConfigError, EngineDied, PenstockError, UserError
from penstock.core.executor import Executor
from penstock.cost.model import CostModel
from penstock.engine.client import EngineClient
from penstock.engine.limits import QueueLimits
from penstock.engine.link import QueueLink
from penstock.engine.loop import Engine, build_engine
from penstock.engine.messages import Died, Hello, Phase, Shutdown
from penstock.engine.serving import serve_engine
from penstock.engine.step_log import Header, StepLog
from penstock.engine.tracing import Tracer, build_traced_engine
from penstock.options import EngineOptions
from penstock.policy.presets import Policies
from penstock.runtime.memory_plan import MemoryPlan, parse_bytes
from penstock.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from penstock.runtime.executor import TorchExecutor
    from penstock.runtime.ranks import Ranks

log = logging.getLogger("penstock.launch")
# oneDNN compiles a kernel for every shape it meets and keeps 1024 of them: some hundred MiB when every prompt has
# another length. 64 hold a step's shapes with room to spare; the figures are in docs/benchmarks.md. The user's own win.
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
SIMULATED_DEVICE = "h200"  # where `device` says auto
MEAN_ANSWER_TOKENS = 200
STUB_TEXT = "word word"  # what simulated answers say, again and again
OnPhase = Callable[[str, float | None], None]
OnLost = Callable[[PenstockError], None]


def no_phases(name: str, seconds: float | None) -> None:
    """For callers that show no progress."""


def nobody_to_tell(why: PenstockError) -> None:
    """For callers that find out at their next step."""


def make_engine(options: EngineOptions, on_phase: OnPhase = no_phases, on_lost: OnLost = nobody_to_tell) -> Engine:
    """Load the model and join the parts of one engine in this process, and of further ranks in theirs.

    on_lost: told, from a thread, if a further rank ends, which no step of this engine survives.
    Raises ModelError or ConfigError.
    """
    tracer = None if options.trace is None else _tracer(Path(options.trace))
    if options.executor == "simulated":
        return _simulated(options, on_phase, tracer)
    return _real(options, on_phase, on_lost, tracer)


def _limits(options: EngineOptions) -> QueueLimits:
    return QueueLimits(max_queued_requests=options.max_queued_requests, max_queued_tokens=options.max_queued_tokens)


def _tracer(path: Path) -> Tracer:
    """Raises ConfigError for a path that cannot be written: told now, not when everything has run."""
    try:
        path.touch()
    except OSError as error:
        raise ConfigError(f"cannot write the trace {path}: {error.strerror}; give --trace another path") from None
    return Tracer(path)


def _builder(options: EngineOptions, tracer: Tracer | None) -> Callable[..., Engine]:
    """`build_engine`, or what does the same with a timeline, a step log, or both."""
    build: Callable[..., Engine] = build_engine if tracer is None else partial(build_traced_engine, tracer)
    if options.step_log is None:
        return build
    path = Path(options.step_log)

    def build_logged(
        executor: Executor, n_blocks: tuple[int, ...], policies: Policies, *, cost: CostModel | None, **more: Any
    ) -> Engine:
        header = Header(
            facts=executor.facts,
            n_blocks=n_blocks,
            n_host_blocks=more["n_host_blocks"],
            max_rows=executor.max_rows,
            look_ahead=options.look_ahead,
            prefix_caching=options.prefix_caching,
            policy=options.policy,
            slots=options.slots,
            policy_options=options.policy_options,
            max_queued_requests=options.max_queued_requests,
            max_queued_tokens=options.max_queued_tokens,
            device=options.device,
            cost="" if cost is None else cost.describe(),
        )
        return build(executor, n_blocks, policies, cost=cost, step_log=StepLog(path, header), **more)

    return build_logged


def _simulated(options: EngineOptions, on_phase: OnPhase, tracer: Tracer | None) -> Engine:
    """An engine whose steps take predicted time, for real clients: a staging server without the device."""
    from penstock.hardware import described, hardware_of
    from penstock.sim.executor import SleepingClock
    from penstock.sim.instance import simulated_engine
    from penstock.text.tokenizer import Tokenizer

    hardware = hardware_of(
        described(options.model, options.quantize),
        SIMULATED_DEVICE if options.device == "auto" else options.device,
        max_rows=options.max_running,
        block_tokens=options.block_tokens,
        kv_bytes=None if options.kv_memory is None else parse_bytes(options.kv_memory),
        host_kv_bytes=parse_bytes(options.host_kv_memory),
        max_model_tokens=options.max_model_tokens,
        sink_tokens=options.sink_tokens,
        window_tokens=options.window_tokens,
        profile=options.profile_path,
    )
    on_phase(f"simulated: {hardware.facts.name} on {hardware.device.name}, nothing is computed", None)
    return simulated_engine(
        hardware,
        options.build_policies(),
        SleepingClock(),
        answer_tokens,
        limits=_limits(options),
        look_ahead=options.look_ahead,
        share_prefixes=options.prefix_caching,
        has_own_host_time=True,
        some_token=Tokenizer.from_path(options.model_path).encode(STUB_TEXT, add_special_tokens=False)[-1],
        build=_builder(options, tracer),
    )


def answer_tokens(seed: int) -> int:
    """Length of a stub's answer where the request asks for none: exponential, the same for the same seed."""
    return 1 + int(Random(seed).expovariate(1 / MEAN_ANSWER_TOKENS))


def _real(options: EngineOptions, on_phase: OnPhase, on_lost: OnLost, tracer: Tracer | None) -> Engine:
    from penstock.hardware import device_names, measured_cost

    policies = options.build_policies()
    name = options.model_path.resolve().name
    cost = None
    if options.profile_path is not None:  # a wrong one is told before weights are loaded
        cost = measured_cost(name, options.device, options.profile_path)
    executor, own = _ready_executor(options, on_phase, on_lost)
    if tracer is not None:
        own.tell_spans(tracer.note_span)
    if cost is None and options.tensor_parallel == 1:  # what ships was measured on one device
        cost = measured_cost(name, device_names(options.device)[0], None)
    return _builder(options, tracer)(
        executor,
        own.n_blocks,
        policies,
        n_host_blocks=own.n_host_blocks,
        limits=_limits(options),
        look_ahead=options.look_ahead,
        share_prefixes=options.prefix_caching,
        cost=cost,
    )


def _ready_executor(options: EngineOptions, on_phase: OnPhase, on_lost: OnLost) -> tuple[Executor, TorchExecutor]:
    """What obeys a scheduler: the executor of one device, or one that leads those of several; and that of this one."""
    if options.tensor_parallel == 1:
        alone = build_rank(options, None, on_phase)
        return alone, alone
    from penstock.runtime.crew import Crew
    from penstock.runtime.ranks import LeadingExecutor

    command = [sys.executable, "-m", "penstock.rank_main", str(os.getpid())]
    crew = Crew(command, msgspec.json.encode(options), options.tensor_parallel, on_lost)
    try:
        own = build_rank(options, crew, on_phase)
    except BaseException as error:
        is_unclear = isinstance(error, Exception) and not isinstance(error, PenstockError)
        lost = crew.why_lost() if is_unclear else None
        crew.close()
        if lost is None:
            raise
        raise lost from error
    return LeadingExecutor(own, crew), own


def build_rank(options: EngineOptions, ranks: Ranks | None, on_phase: OnPhase = no_phases) -> TorchExecutor:
    """The executor of one rank, or of the only one. Raises ModelError or ConfigError."""
    from penstock.runtime.build import build_executor

    def tell_memory(plan: MemoryPlan) -> None:
        for line in plan.describe():
            on_phase(line, None)

    return build_executor(
        options.model_path,
        dtype=options.dtype,
        device=options.device,
        load_format=options.load_format,
        quantize=options.quantize,
        native_kernels=options.native_kernels,
        kernel_table=options.kernel_table,
        softmax=options.softmax,
        kv_memory_bytes=None if options.kv_memory is None else parse_bytes(options.kv_memory),
        host_kv_memory_bytes=parse_bytes(options.host_kv_memory),
        max_rows=options.max_running,
        block_tokens=options.block_tokens,
        max_model_tokens=options.max_model_tokens,
        sink_tokens=options.sink_tokens,
        window_tokens=options.window_tokens,
        torch_threads=options.threads,
        compile_ahead=options.compile_ahead,
        ranks=ranks,
        shared_prefix_attention=options.shared_prefix_attention,
        on_phase=on_phase,
        on_memory=tell_memory,
    )


class InProcessEngine:
    """An engine in a thread of this process, behind the same client as one in its own process."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        link = QueueLink()
        # a program that reads its own stream slowly has a reason, and its own memory to spend
        self.client = EngineClient(link.front_end, tokenizer, max_unread_steps=None)
        self._link = link
        self._thread = threading.Thread(target=self._serve, args=(engine,), name="engine", daemon=True)
        link.engine_end.send(Hello(engine.scheduler.facts))
        self._thread.start()

    def _serve(self, engine: Engine) -> None:
        try:
            serve_engine(engine, self._link.engine_end)
        except PenstockError:
            log.debug("the engine thread ends; its client was told why")

    async def close(self) -> None:
        await self.client.close()
        await asyncio.to_thread(self._thread.join)


class EngineProcess:
    """An engine in its own process. If it dies, its client is told at once."""

    def __init__(self, options: EngineOptions) -> None:
        from penstock.engine.zmq_link import ZmqFrontEnd

        self._folder = Path(tempfile.mkdtemp(prefix="penstock-"))
        self._link = ZmqFrontEnd(self._folder)
        self._is_closing = False
        command = [sys.executable, "-m", "penstock.engine_main", str(self._folder), str(os.getpid())]
        # a session of its own: Ctrl-C is for the front end alone, from the first moment of the start
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**KERNEL_CACHES, **os.environ}, start_new_session=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(options))
        self._process.stdin.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def connect(
        self, tokenizer: Tokenizer | None, on_phase: Callable[[Phase], None], on_death: Callable[[Died], None]
    ) -> EngineClient:
        """The client, in the running event loop."""
        client = EngineClient(self._link, tokenizer, on_phase, on_death)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return client

    def _watch(self) -> None:
        code = self._process.wait()
        if not self._is_closing:
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            self._link.inject(Died(f"the engine process ended {how}", is_abrupt=True))

    def abandon(self) -> None:
        """End the process before anybody was connected to it."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def close(self, client: EngineClient, patience_s: float = 5.0) -> None:
        """End the process: by request, then by force."""
        self._is_closing = True
        self._link.send(Shutdown())
        try:
            await asyncio.to_thread(self._process.wait, patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        await client.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def as_user_error(died: Died) -> PenstockError:
    """What an engine that died at its start stands for."""
    return UserError(died.message) if died.is_user_error else EngineDied(died.message)
