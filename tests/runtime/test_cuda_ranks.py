"""Ranks on GPUs. One GPU suffices to see sums within captured steps: a group may have one member."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

from penstock import LLM, SamplingParams
from penstock.models.spec import Shard
from penstock.runtime.build import build_executor
from penstock.runtime.peers import ProcessPeers
from penstock.runtime.rank_messages import Fits

from .driver import Job
from .real import run_jobs, shrunk_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class OnlyRank:
    """A model of one rank that sums over NCCL all the same."""

    shard = Shard()

    def __init__(self, folder: Path) -> None:
        self._meeting = folder / "meeting"

    def agree(self, fits: Fits) -> Fits:
        return fits

    def connect(self, device: torch.device) -> ProcessPeers:
        return ProcessPeers(self.shard, self._meeting, device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_with_sums_are_captured_and_draw_the_same(dtype, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    found = []
    for ranks in (None, OnlyRank(tmp_path)):
        options = {"dtype": dtype, "device": "cuda", "load_format": "dummy", "max_rows": 9, "block_tokens": 4}
        executor = build_executor(tmp_path, kv_memory_bytes=2**24, ranks=ranks, **options)
        rng = Random(7)
        jobs = [
            Job(
                prompt=[rng.randrange(61) for _ in range(rng.randint(1, 30))],
                n_outputs=rng.randint(1, 25),
                sampling=SamplingParams(temperature=rng.choice([0.0, 0.7]), top_k=rng.choice([0, 9])),
                seed=rng.randrange(2**63),
            )
            for _ in range(20)
        ]
        run_jobs(executor, jobs, rng)
        found.append([job.outputs for job in jobs])
        assert executor._step._graphs._graphs
        executor.close()
    assert found[0] == found[1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_put_out_what_one_does():
    prompts = ["def quicksort(", "class Stack:\n", "import ", "for line in open("]
    sampling = [SamplingParams(max_tokens=60, temperature=t, seed=3, ignore_eos=True) for t in (0.0, 0.0, 0.9, 0.7)]
    found = []
    for n_gpus in (1, 2):
        with LLM(device="cuda", dtype="float32", kv_memory="256MiB", tensor_parallel=n_gpus) as llm:
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]
