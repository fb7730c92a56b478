"""What the engine itself works on a step, on this machine: the real scheduler around steps that take no time."""

from __future__ import annotations

import time
from array import array
from dataclasses import replace

import numpy as np

from penstock.core.executor import ModelFacts
from penstock.core.plan import Toward
from penstock.core.request import Request, SamplingParams
from penstock.core.view import Estimate
from penstock.cost.load import Floats, StepLoad
from penstock.cost.profile import HostTimes
from penstock.engine.loop import Engine, build_engine
from penstock.engine.messages import Updates, encode
from penstock.policy.presets import build_policies
from penstock.sim.executor import STOP_TOKEN, JumpingClock, SimExecutor

WARM_UPS, STEPS = 20, 200
SEQUENCES_PER_ROW = 4
SHORT_ANSWER, SHORT_PROMPT, LONG_PROMPT = 4, 16, 512


class _Free:
    """Steps that take no time: what is left is the host's work."""

    front_s = 0.0

    def step(self, load: StepLoad) -> Estimate:
        return Estimate(0.0, 0.0)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        return 0.0 * keys

    def host_s(self, load: StepLoad) -> float:
        return 0.0

    def move_s(self, n_bytes: int, toward: Toward) -> float:
        return 0.0

    def describe(self) -> str:
        return "nothing takes time"


def host_times(facts: ModelFacts, n_blocks: tuple[int, ...], max_rows: int) -> HostTimes:
    """Steady batches of two sizes give the time of a step and of a row; short answers that of a sequence and, with
    short and long prompts, of a prompt token.
    """
    few = min(2, max_rows)
    step_s = _steady_s(facts, n_blocks, few)
    row_s = max(0.0, (_steady_s(facts, n_blocks, max_rows) - step_s) / max(1, max_rows - few))
    step_s = max(0.0, step_s - few * row_s)
    longest = max(SHORT_PROMPT + 1, min(LONG_PROMPT, facts.max_model_tokens - SHORT_ANSWER - 1))
    short_s = _sequence_s(facts, n_blocks, max_rows, SHORT_PROMPT, step_s, row_s)
    long_s = _sequence_s(facts, n_blocks, max_rows, longest, step_s, row_s)
    token_s = max(0.0, (long_s - short_s) / (longest - SHORT_PROMPT))
    return HostTimes(step_s=step_s, row_s=row_s, start_s=max(0.0, short_s - SHORT_PROMPT * token_s), token_s=token_s)


def _engine(facts: ModelFacts, n_blocks: tuple[int, ...], max_rows: int) -> Engine:
    clock = JumpingClock()
    executor = SimExecutor(
        replace(facts, stop_token_ids=frozenset({STOP_TOKEN})), _Free(), clock, lambda seed: 2**30, max_rows=max_rows
    )
    return build_engine(executor, n_blocks, build_policies(), clock=clock)


def _request(number: int, prompt_tokens: int, max_tokens: int) -> Request:
    prompt = array("i", np.random.default_rng(number).integers(3, 250, prompt_tokens).tolist())
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return Request(id=str(number), prompt=prompt, sampling=sampling, seed=number)


def _step(engine: Engine) -> None:
    updates = engine.step()
    if updates:
        encode(Updates(updates))


def _steady_s(facts: ModelFacts, n_blocks: tuple[int, ...], rows: int) -> float:
    """Of a step of so many decoding sequences."""
    engine = _engine(facts, n_blocks, rows)
    for number in range(rows):
        engine.add(_request(number, 8, WARM_UPS + STEPS + 20))
    for _ in range(WARM_UPS):
        _step(engine)
    began_s = time.perf_counter()
    for _ in range(STEPS):
        _step(engine)
    return (time.perf_counter() - began_s) / STEPS


def _sequence_s(
    facts: ModelFacts, n_blocks: tuple[int, ...], rows: int, prompt_tokens: int, step_s: float, row_s: float
) -> float:
    """Of a sequence from its acceptance to its end, beside what its steps take anyway."""
    rows = min(rows, 8)
    engine = _engine(facts, n_blocks, rows)
    n_steps = n_rows = 0
    requests = [_request(number, prompt_tokens, SHORT_ANSWER) for number in range(SEQUENCES_PER_ROW * rows)]
    began_s = time.perf_counter()
    while engine.has_work or requests:
        while requests and engine.scheduler.ledger.n_open < rows:
            engine.add(requests.pop())
        _step(engine)
        n_steps += 1
        n_rows += engine.scheduler.n_running
    seconds = time.perf_counter() - began_s - n_steps * step_s - n_rows * row_s
    return max(0.0, seconds) / (SEQUENCES_PER_ROW * rows)
