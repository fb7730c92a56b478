"""What a request gets depends on nothing but itself: its neighbours may use any knob, memory may run short."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.clock import VirtualClock
from penstock.core.request import Request, SamplingParams
from penstock.engine.loop import build_engine
from penstock.engine.scheduler import SEED_STRIDE
from penstock.policy.presets import build_policies
from penstock.runtime.build import build_executor
from tests.engine.unruly import Outcome, RandomLayers, Restless
from tests.models.checkpoints import VOCAB_SIZE, make_model, save

CONTEXT = 96
PROMPTS = [
    torch.randint(0, VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 5, 8, 21)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(make_model("llama3-gqa"), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(folder):
    """Runs one request at a time, undisturbed: (prompt, what it asks, seed) -> its tokens."""
    executor = build_executor(
        folder, dtype="float32", kv_memory_bytes=1 << 20, max_rows=1, block_tokens=4, max_model_tokens=CONTEXT
    )
    engine = build_engine(executor, (200,), build_policies(), clock=VirtualClock(), share_prefixes=False)
    numbers = count()

    def run(prompt: int, sampling: SamplingParams, seed: int) -> list[int]:
        name, outcome = f"alone{next(numbers)}", Outcome()
        engine.add(Request(id=name, prompt=PROMPTS[prompt], sampling=replace(sampling, n=1), seed=seed))  # type: ignore[arg-type]
        outcome.run(engine)
        return outcome.tokens[name, 0]

    yield run
    engine.close()


few = st.integers(0, 9)  # so that what is forbidden, biased and counted does come up
ids = few | st.integers(0, VOCAB_SIZE - 1)
KNOBS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.0, 0.6, 3.0]),
    "top_k": st.sampled_from([1, 4]),
    "top_p": st.sampled_from([0.3, 0.9]),
    "min_p": st.sampled_from([0.05, 0.5]),
    "presence_penalty": st.sampled_from([2.0, -2.0]),
    "frequency_penalty": st.sampled_from([1.5, -1.0]),
    "repetition_penalty": st.sampled_from([1.7, 0.6]),
    "logit_bias": st.dictionaries(ids, st.floats(-100, 100), min_size=1, max_size=20),
    "allowed_token_ids": st.lists(few, min_size=5, max_size=9, unique=True),
    "bad_word_ids": st.lists(st.lists(few, min_size=2, max_size=3), min_size=1, max_size=40),
    "min_tokens": st.integers(1, 9),
    "stop_token_ids": st.lists(ids, max_size=3, unique=True),
    "ignore_eos": st.just(True),
    "logprobs": st.integers(0, 3),
    "prompt_logprobs": st.integers(0, 3),
}


def params(n_knobs: st.SearchStrategy[set[str]]) -> st.SearchStrategy[SamplingParams]:
    def build(names: set[str]) -> st.SearchStrategy[SamplingParams]:
        chosen = {name: KNOBS[name] for name in sorted(names)}
        return st.builds(SamplingParams, max_tokens=st.integers(9, 24), n=st.sampled_from([1, 1, 3]), **chosen)

    return n_knobs.flatmap(build)


one_knob = params(st.sampled_from(sorted(KNOBS)).map(lambda name: {name}))
any_knobs = params(st.sets(st.sampled_from(sorted(KNOBS))))
Asked = tuple[int, SamplingParams, int]  # prompt, what it asks, steps before the next one comes


def serve(folder: Any, asked: list[Asked], *, policies: Any, n_blocks: int, max_rows: int) -> Outcome:
    executor = build_executor(
        folder, dtype="float32", kv_memory_bytes=1 << 20, max_rows=max_rows, block_tokens=4, max_model_tokens=CONTEXT
    )
    clock, outcome = VirtualClock(), Outcome()
    engine = build_engine(executor, (n_blocks,), policies, clock=clock)

    def step() -> None:
        clock.advance(1.0)
        for update in engine.step():
            outcome.note(update)

    for k, (prompt, sampling, wait_steps) in enumerate(asked):
        engine.add(Request(id=f"r{k}", prompt=PROMPTS[prompt], sampling=sampling, seed=k, arrival_s=clock.now_s()))  # type: ignore[arg-type]
        for _ in range(wait_steps):
            step()
    for _ in range(3000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work
    engine.scheduler.audit()
    engine.close()
    return outcome


requests = st.tuples(st.integers(0, len(PROMPTS) - 1), one_knob | any_knobs, st.integers(0, 6))


# Always the same examples: torch rounds a product of matrices by its number of rows, so once in some million draws a
# sample falls between two tokens whose borders differ in the seventh digit. Seen: 0.5933322 against 0.5933325.
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    asked=st.lists(requests, min_size=2, max_size=5),
    n_blocks=st.sampled_from([26, 32, 200]),
    max_rows=st.integers(2, 6),
    budget_tokens=st.sampled_from([3, 16, 64]),
    cuts=st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(lambda cuts: any(c % 2 for c in cuts)),
    restless=st.none() | st.integers(2, 4),
)
def test_tokens_are_those_of_the_request_alone(folder, alone, asked, n_blocks, max_rows, budget_tokens, cuts, restless):
    """Alone and undisturbed, against: beside others, forked, preempted, paused, in chunks, in any row.

    An odd cut lets the others decode: with none, prompts that are preempted again and again would starve them.
    """
    policies = build_policies(options={"batch": {"budget_tokens": budget_tokens}})
    if cuts is not None:
        policies = replace(policies, batch=RandomLayers(tuple(cuts)))
    if restless is not None:
        policies = replace(policies, preempt=Restless(restless))
    together = serve(folder, asked, policies=policies, n_blocks=n_blocks, max_rows=max_rows)
    for k, (prompt, sampling, _) in enumerate(asked):
        for index in range(sampling.n):
            seed = (k + index * SEED_STRIDE) % 2**63
            assert together.tokens[f"r{k}", index] == alone(prompt, sampling, seed)
