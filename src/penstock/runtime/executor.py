"""`TorchExecutor`: the `Executor` of the core protocol on one torch device.

A step never waits for its own result. On a CPU one worker thread carries out plans in order (torch releases the
interpreter's lock while it computes); on an accelerator `submit` queues the work on the device's stream at once and
the result is ready when an event says so. The step itself is the same code (`step.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Worker
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.core.errors import EngineDied
from penstock.core.executor import DeviceSpan, ModelFacts, StepResult, Ticket
from penstock.core.plan import Plan
from penstock.runtime.cascade import SharingRule
from penstock.runtime.movers import Lane
from penstock.runtime.readback import Readback
from penstock.runtime.rows import Known
from penstock.runtime.spans import Spans
from penstock.runtime.step import Model, Stepper

NewPool = Callable[[int, int], Tensor]  # (layer, number of blocks) -> zeros, block index in the second dimension


class _AtOnce(Worker):
    """Runs what is submitted before it returns: for work that only queues on a device."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  - handed to whoever collects
            future.set_exception(error)
        return future


class TorchExecutor:
    """Runs plans with a decoder. new_pool: makes the state pool of a layer; zeros, since padding is read and masked.

    lane: where moves between the tiers are queued; None: what suits the device. sharing: as for `Stepper`.
    """

    def __init__(
        self,
        model: Model,
        facts: ModelFacts,
        *,
        new_pool: NewPool,
        max_rows: int,
        device: torch.device,
        lane: Lane | None = None,
        sharing: Sequence[SharingRule | None] = (),
    ) -> None:
        self._facts = facts
        self._max_rows = max_rows
        self._new_pool = new_pool
        self._device = device
        self._step = Stepper(model, facts, max_rows=max_rows, device=device, lane=lane, sharing=sharing)
        self._worker: Worker = ThreadPoolExecutor(1, "penstock-step") if device.type == "cpu" else _AtOnce()
        self._submitted: deque[tuple[Ticket, Future[Readback]]] = deque()
        self._died_of: str | None = None
        self._spans: Spans | None = None
        self._close_also: list[Callable[[], None]] = []
        self.n_blocks: tuple[int, ...] = ()
        self.n_host_blocks: tuple[int, ...] = ()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def max_rows(self) -> int:
        return self._max_rows

    @property
    def graph_buckets(self) -> tuple[int, ...]:
        """Rows of the graphs that decode steps run as; none: steps run kernel by kernel."""
        return self._step.graph_buckets

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        """Make the pools, once. Raises ValueError if there is not one positive number per state group; ConfigError if
        host memory cannot be pinned.
        """
        states = self._facts.states
        if len(n_blocks) != len(states) or min(n_blocks) < 1:
            raise ValueError(f"n_blocks is {n_blocks}: give a positive number for each of {len(states)} state groups")
        if n_host_blocks and (len(n_host_blocks) != len(states) or min(n_host_blocks) < 0):
            raise ValueError(f"n_host_blocks is {n_host_blocks}: give a number for each of {len(states)} state groups")
        assert not self.n_blocks, f"the pools exist already, with {self.n_blocks} blocks"
        group_of = {layer: group for group, spec in enumerate(states) for layer in spec.layers}
        n_spare = int(self._device.type != "cpu")  # see `Stepper`
        self._step.use_pools(
            tuple(
                self._new_pool(layer, n_blocks[group_of[layer]] + n_spare) if layer in group_of else torch.empty(0)
                for layer in range(self._facts.n_layers)
            ),
            n_host_blocks,
        )
        self.n_blocks, self.n_host_blocks = n_blocks, n_host_blocks

    def submit(self, plan: Plan) -> Ticket:
        """Take a plan without waiting for its result."""
        assert self.n_blocks, "allocate() comes before the first plan"
        known = [np.array(start.tokens, np.int32) for start in plan.starts]  # copies: the scheduler's arrays grow
        ticket = Ticket(plan.id)
        self._submitted.append((ticket, self._worker.submit(self._run, plan, known)))
        return ticket

    def _run(self, plan: Plan, known: Sequence[Known]) -> Readback:
        if self._died_of is not None:
            raise EngineDied(f"step {plan.id} did not run, for {self._died_of}")
        try:
            with torch.inference_mode():
                return self._step.run(plan, known)
        except Exception as error:
            self._note_death(plan.id, error)
            raise

    def _note_death(self, plan_id: int, error: Exception) -> None:
        self._died_of = self._died_of or f"step {plan_id} failed before it: {error!r}"

    def collect(self, ticket: Ticket) -> StepResult:
        """Wait for the oldest result. Raises what broke its step; EngineDied if an earlier step broke."""
        assert self._submitted, f"{ticket} was not submitted, or was collected already"
        oldest, future = self._submitted[0]
        assert ticket == oldest, f"{ticket} is not the oldest: collect {oldest} first"
        self._submitted.popleft()
        readback = future.result()
        try:
            result = readback.result()
        except Exception as error:  # an accelerator tells of a broken step only now
            self._note_death(ticket.plan_id, error)
            raise
        if self._spans is not None:
            self._spans.tell(readback.watch, readback.how)
        return result

    def prepare(self) -> bool:
        """Capture one of the steps that may come; whether there are more (`core.executor.Preparing`)."""
        assert not self._submitted, "a plan is out: its rows are not to be touched"
        if self._died_of is not None:
            return False
        with torch.inference_mode():
            return self._step.prepare()

    def tell_spans(self, to: Callable[[DeviceSpan], None]) -> None:
        """From now on tell with each result when the device worked on it. Waits for what is queued on the device."""
        self._spans = Spans(self._device, to)

    def close(self) -> None:
        """End the worker and give the pools back. Results that were not collected are lost."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._submitted.clear()
        self._step.close()
        while self._close_also:
            self._close_also.pop()()

    def close_also(self, end: Callable[[], None]) -> None:
        """Called when this closes: for what was started beside it."""
        self._close_also.append(end)
