"""However a scheduler interleaves them, sequences put out what each would alone, decoded without pages or chunks."""

from __future__ import annotations

from random import Random

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from penstock.core.request import SamplingParams
from penstock.runtime.executor import TorchExecutor

from .driver import Driver, Job, expected_outputs
from .toy import VOCAB, ToyDecoder

CPU = torch.device("cpu")


def toy_executor(model: ToyDecoder, max_rows: int = 4) -> TorchExecutor:
    return TorchExecutor(model, model.facts, new_pool=model.new_pool, max_rows=max_rows, device=CPU)


def random_jobs(rng: Random, n_jobs: int) -> list[Job]:
    """Some share their prompt."""
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 3, 4, 5, 8, 9, 17]))] for _ in range(n_jobs)]
    return [Job(prompt=rng.choice(prompts), n_outputs=rng.randint(1, 9)) for _ in range(n_jobs)]


def check(model: ToyDecoder, jobs: list[Job], rng: Random, **driving: float) -> None:
    executor = toy_executor(model)
    try:
        Driver(executor, rng, **driving).run(jobs)
    finally:
        executor.close()
    for job in jobs:
        assert job.outputs == expected_outputs(model, job)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_sequences_put_out_what_each_would_alone(seed):
    rng = Random(seed)
    check(ToyDecoder(), random_jobs(rng, rng.randint(1, 7)), rng)
