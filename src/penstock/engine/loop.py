"""The loop around one executor: plan the next step while the last one runs, then take its result in.

`look_ahead` plans are out besides the one that is waited for. With 1, the device finds the next step ready when it
ends one; the price is one wasted token for a sequence whose end the host did not know yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf

import numpy as np

from penstock.cache.host import HostTier
from penstock.cache.memory import Memory, build_groups
from penstock.core.clock import Clock, MonotonicClock
from penstock.core.executor import Executor, Foreseeing, Foresight, Preparing, Ticket
from penstock.core.plan import Leap, Plan
from penstock.core.request import Request
from penstock.core.sequence import FinishReason
from penstock.cost.model import CostModel
from penstock.engine.costs import OnlineCosts
from penstock.engine.draft import Planned
from penstock.engine.limits import QueueLimits
from penstock.engine.messages import Update
from penstock.engine.scheduler import Scheduler
from penstock.engine.step_log import StepLog
from penstock.policy.presets import Policies


class Engine:
    """One instance: a scheduler and the executor that obeys it."""

    def __init__(self, scheduler: Scheduler, executor: Executor, clock: Clock, look_ahead: int = 1) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._look_ahead = look_ahead
        self._out: deque[tuple[Planned, Ticket]] = deque()
        self._is_stalled = False
        self._foreseeing = executor if isinstance(executor, Foreseeing) else None
        self._ahead: Foresight | None = None
        self._steps = 0
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._device_s = 0.0
        self.log: StepLog | None = None
        self._keys_read = 0
        self._keys_saved = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._out)

    @property
    def is_stalled(self) -> bool:
        """There is work, but the last step found nothing to run: the policies wait for something."""
        return self._is_stalled and self.has_work

    def add(self, request: Request, age_s: float | None = None) -> None:
        """Accept a request; it arrived `age_s` ago (None: at its own `arrival_s`). Raises as `Scheduler.add` does."""
        now_s = self._clock.now_s()
        if age_s is not None:
            request = replace(request, arrival_s=now_s - age_s)
        self.scheduler.add(request, now_s)
        if self.log is not None:
            self.log.note_arrival(request, now_s)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        now_s = self._clock.now_s()
        if self.log is not None:
            self.log.note_cut(request_id, now_s)
        self.scheduler.abort(request_id, now_s, reason)

    def finish(self, request_id: str, index: int, output_tokens: int) -> None:
        now_s = self._clock.now_s()
        if self.log is not None:
            self.log.note_cut(request_id, now_s, index, output_tokens)
        self.scheduler.finish(request_id, index, output_tokens, now_s)

    def step(self) -> list[Update]:
        """Hand out the next plan, wait for the oldest result if enough are out, and return what there is to tell."""
        now_s = self._clock.now_s()
        planned = self.scheduler.plan(now_s)
        if planned is not None:
            foreseen = self.scheduler.costs.note_plan(planned.plan)
            self._out.append((planned, self._executor.submit(planned.plan)))
            self._count(planned)
            if self.log is not None and foreseen is not None:
                self.log.note_plan(planned.plan, foreseen, now_s, self._clock.now_s() - now_s)
        self._is_stalled = planned is None and not self._out
        if len(self._out) > self._look_ahead or (planned is None and self._out):
            self._collect()
        if self.log is not None:
            self.log.turn += 1
        return self.take_updates()

    def prepare(self) -> bool:
        """With no work: let the executor get ready for some, a little at a time; whether there is more of that."""
        assert not self.has_work, "there is work to do first"
        return isinstance(self._executor, Preparing) and self._executor.prepare()

    def steps_one_by_one(self) -> None:
        """Never leap, whatever the executor foresees: to compare, and to look at every step."""
        self._foreseeing = None

    def steady_until_s(self) -> float:
        """Until then, if nobody comes or is cancelled, `leap` can do what `step` would; now, if it cannot."""
        self._ahead = self._foresee()
        return self._clock.now_s() if self._ahead is None else float(self._ahead.ends_s[-1])

    def leap(self, until_s: float = inf) -> tuple[list[Update], list[float]]:
        """Take the steps that begin before then and that `steady_until_s`, just asked, foresaw.

        Returns (what they brought, when each step's result was there): every update has a token of every step.
        """
        ahead, self._ahead = self._ahead, None
        now_s = self._clock.now_s()
        if ahead is None or now_s >= until_s:
            return [], []
        assert self._foreseeing is not None
        steps = min(len(ahead.ends_s), 1 + int(np.searchsorted(ahead.ends_s, until_s)))
        leap, updates = self.scheduler.leap(ahead, steps, now_s)
        self._foreseeing.leap(leap)
        self._rename_out(leap)
        self._steps += steps
        self._decode_tokens += steps * leap.decode.tokens
        self._device_s += float(ahead.device_s[:steps].sum())
        return updates, ahead.ends_s[:steps].tolist()

    def _foresee(self) -> Foresight | None:
        if self.log is not None or self._foreseeing is None or len(self._out) != self._look_ahead or not self._out:
            return None
        steps = self.scheduler.leaps.steps(planned for planned, _ in self._out)
        if steps < 1:
            return None
        ahead = self._foreseeing.foresee(self._out[0][0].plan.decode, steps)
        return None if ahead is None or self.scheduler.leaps.is_end_among(ahead.tokens) else ahead

    def _rename_out(self, leap: Leap) -> None:
        """What is out now are the last plans of a leap; all but their number is as before."""
        stop_id = leap.first_id + leap.steps
        for at, (planned, _) in enumerate(self._out):
            plan_id = stop_id - len(self._out) + at
            plan = Plan(id=plan_id, decode=leap.decode)
            self._out[at] = Planned(plan, planned.samples, ()), Ticket(plan_id)

    def take_updates(self) -> list[Update]:
        """What happened since the last call."""
        updates, self.scheduler.updates = self.scheduler.updates, []
        if self.log is not None:
            self.log.note_updates(updates)
        return updates

    def counters(self) -> Mapping[str, float]:
        """Gauges and counters by plain name; see docs/operations.md."""
        return {
            **self.scheduler.counters(),
            "steps_total": self._steps,
            "prefill_tokens_total": self._prefill_tokens,
            "decode_tokens_total": self._decode_tokens,
            "device_seconds_total": self._device_s,
            "decode_keys_read_total": self._keys_read,
            "decode_keys_saved_total": self._keys_saved,
        }

    def close(self, reason: FinishReason = FinishReason.ABORT) -> None:
        """Give everything back; what is open ends for this reason."""
        self.scheduler.ledger.end_all(reason, self._clock.now_s())
        self._out.clear()
        self._executor.close()
        if self.log is not None:
            self.log.close()

    def _collect(self) -> None:
        planned, ticket = self._out.popleft()
        result = self._executor.collect(ticket)
        self._device_s += result.device_s
        self._keys_read += result.keys_read
        self._keys_saved += result.keys_saved
        now_s = self._clock.now_s()
        self.scheduler.collect(planned, result, now_s)
        if self.log is not None:
            self.log.note_result(result, self._clock.now_s() - now_s)

    def _count(self, planned: Planned) -> None:
        self._steps += 1
        self._decode_tokens += planned.plan.decode.tokens
        self._prefill_tokens += planned.plan.tokens - planned.plan.decode.tokens


def build_engine(
    executor: Executor,
    n_blocks: tuple[int, ...],
    policies: Policies,
    *,
    n_host_blocks: tuple[int, ...] = (),
    limits: QueueLimits | None = None,
    clock: Clock | None = None,
    look_ahead: int = 1,
    share_prefixes: bool = True,
    cost: CostModel | None = None,
    step_log: StepLog | None = None,
    new_engine: Callable[[Scheduler, Executor, Clock, int], Engine] = Engine,
) -> Engine:
    """Join the parts of one instance around an executor whose pools hold `n_blocks` blocks per state group, and whose
    host tier holds `n_host_blocks` (none: there is no such tier). cost: what steps take, for the policies, corrected by
    those that run; None: that alone. step_log: where every step is written down.
    """
    facts = executor.facts
    costs = OnlineCosts(facts, cost, follows_plans=step_log is not None)
    groups = build_groups(facts.states, n_blocks, policies.new_retain)
    host = HostTier(groups, n_host_blocks, policies.new_retain, costs) if any(n_host_blocks) else None
    memory = Memory(groups, facts.states[0].block_tokens, share_prefixes=share_prefixes, host=host)
    scheduler = Scheduler(facts, memory, policies, executor.max_rows, limits, costs)
    engine = new_engine(scheduler, executor, clock or MonotonicClock(), look_ahead)
    engine.log = step_log
    return engine
