"""Steps of a running engine: what they take beside a scheduler that works at the same time."""

from __future__ import annotations

from array import array
from collections import deque

import numpy as np

from penstock.core.executor import ModelFacts, StepResult, Ticket
from penstock.core.plan import Plan
from penstock.core.request import Request, SamplingParams
from penstock.cost.follow import PlanLoads
from penstock.cost.load import StepLoad
from penstock.cost.profile import Sample
from penstock.engine.loop import build_engine
from penstock.engine.messages import Updates, encode
from penstock.policy.presets import build_policies
from penstock.runtime.executor import TorchExecutor

AT_ONCE = (1, 4, 12, 32)  # requests that are open together, one after the other
REQUESTS = 12  # of each
PROMPT_TOKENS, ANSWER_TOKENS = (8, 400), (8, 40)


class Watched:
    """An executor, and what each of its steps took."""

    def __init__(self, executor: TorchExecutor) -> None:
        self.samples: list[Sample] = []
        self._executor = executor
        self._loads = PlanLoads(executor.facts)
        self._open: deque[tuple[Plan, StepLoad]] = deque()

    @property
    def facts(self) -> ModelFacts:
        return self._executor.facts

    @property
    def max_rows(self) -> int:
        return self._executor.max_rows

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        self._executor.allocate(n_blocks, n_host_blocks)

    def submit(self, plan: Plan) -> Ticket:
        self._open.append((plan, self._loads.follow(plan)))
        return self._executor.submit(plan)

    def collect(self, ticket: Ticket) -> StepResult:
        result = self._executor.collect(ticket)
        plan, load = self._open.popleft()
        if not plan.is_empty:
            self.samples.append(Sample(load, result.device_s))
        return result

    def close(self) -> None:
        self._executor.close()


def served_samples(executor: TorchExecutor, sampling: SamplingParams, max_rows: int) -> list[Sample]:
    """Serve some requests, few and many at a time, and give back what their steps took."""
    watched, rng = Watched(executor), np.random.default_rng(0)
    engine = build_engine(watched, executor.n_blocks, build_policies())
    longest = max(1, executor.facts.max_model_tokens // 2)
    for at_once in sorted({min(n, max_rows) for n in AT_ONCE}):
        left = max(REQUESTS, 2 * at_once)
        while left or engine.has_work:
            while left and engine.scheduler.ledger.n_open < at_once:
                n_prompt = min(longest, int(rng.integers(*PROMPT_TOKENS)))
                engine.add(_request(f"{at_once}/{left}", rng, n_prompt, int(rng.integers(*ANSWER_TOKENS)), sampling))
                left -= 1
            updates = engine.step()
            if updates:
                encode(Updates(updates))
    engine.scheduler.audit()
    return watched.samples


def _request(name: str, rng: np.random.Generator, n_prompt: int, n_answer: int, sampling: SamplingParams) -> Request:
    prompt = array("i", rng.integers(3, 250, n_prompt).tolist())
    wanted = SamplingParams(
        temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=n_answer, ignore_eos=True
    )
    return Request(id=name, prompt=prompt, sampling=wanted, seed=int(rng.integers(2**31)))
