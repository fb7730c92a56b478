"""The same step on an accelerator: the same tokens, and nothing in it waits for the device."""

from __future__ import annotations

import json
from array import array
from random import Random

import pytest
import torch

from penstock.core.plan import Chunk, DecodeGroup, Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.models.weights import load_model
from penstock.runtime.build import build_executor

from .driver import Job, expected_outputs
from .real import WholeForward, run_jobs, shrunk_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTIONS = {"dtype": "float32", "device": "cuda", "load_format": "dummy"}


@pytest.fixture
def executor(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    executor = build_executor(tmp_path, kv_memory_bytes=2**24, max_rows=5, block_tokens=4, **OPTIONS)
    yield executor
    executor.close()


def test_any_interleaving_puts_out_what_each_sequence_would_alone(executor, tmp_path):
    rng = Random(3)
    jobs = [
        Job(
            prompt=[rng.randrange(61) for _ in range(rng.randint(1, 30))],
            n_outputs=rng.randint(1, 12),
            sampling=SamplingParams(
                temperature=rng.choice([0.0, 1.0]),
                top_k=rng.choice([0, 9]),
                logprobs=rng.choice([None, 2]),
                prompt_logprobs=rng.choice([None, 1]),
                min_tokens=rng.choice([0, 1]),
                presence_penalty=rng.choice([0.0, 1.5]),
                frequency_penalty=rng.choice([0.0, 0.8]),
                repetition_penalty=rng.choice([1.0, 1.6]),
                logit_bias=rng.choice([(), {k: rng.uniform(-3, 3) for k in range(rng.randint(1, 30))}]),
                allowed_token_ids=rng.choice([None, list(range(0, 61, 2))]),
                bad_word_ids=rng.choice([(), [[rng.randrange(61) for _ in range(n % 3 + 1)] for n in range(30)]]),
            ),
            seed=rng.randrange(2**63),
        )
        for _ in range(16)
    ]
    run_jobs(executor, jobs, rng)
    whole = WholeForward(load_model(tmp_path, **OPTIONS), executor.facts)
    assert [job.outputs for job in jobs] == [expected_outputs(whole, job) for job in jobs]
    for job in jobs:
        if job.logprobs:
            expected_TV = whole.reference(job.prompt + job.outputs).log_softmax(-1)[len(job.prompt) - 1 :]
            expected = [float(expected_TV[at, token]) for at, token in enumerate(job.outputs)]
            assert [record.logprob for record in job.logprobs] == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_submit_never_waits_for_the_device(executor):
    asked = SamplingParams(
        temperature=1.0, top_p=0.9, logprobs=2, prompt_logprobs=1, min_tokens=3, frequency_penalty=0.5,
        repetition_penalty=1.2, logit_bias={5: 1.0}, allowed_token_ids=tuple(range(9, 40)),
        bad_word_ids=((9,), (10, 11)),
    )  # fmt: skip
    starts = [
        RowStart(
            row=row,
            tokens=array("i", [5, 6, 7]),
            prompt_tokens=3,
            computed_tokens=0,
            blocks=((2 * row, 2 * row + 1),),
            sampling=asked,
            seed=row,
        )
        for row in range(2)
    ]
    chunks = [Chunk(row=row, start=0, stop=3) for row in range(2)]
    plans = [
        Plan(id=1, starts=(starts[0],), chunks=(chunks[0],), sampling_chunks=(0,)),
        Plan(id=2, decode=DecodeGroup((0,), 1), starts=(starts[1],), chunks=(chunks[1],), sampling_chunks=(0,)),
        Plan(id=3, decode=DecodeGroup((0, 1), 2)),
        Plan(id=4, decode=DecodeGroup((0, 1), 2)),
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        tickets = [executor.submit(plan) for plan in plans]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    results = [executor.collect(ticket) for ticket in tickets]
    assert [len(result.tokens) for result in results] == [1, 2, 2, 2]
    assert all(result.device_s > 0 for result in results)
    assert len(results[1].prompt_logprobs[0]) == 2
