"""A process that compiles kernels without a GPU; see test_kernel_variants.py. Prints JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
import triton

from penstock.core.request import SamplingParams
from penstock.ops import chain
from penstock.ops.op import Op
from penstock.ops.rms_norm import rms_norm
from penstock.runtime.compile_ahead import Job, _compile, _inherit
from penstock.runtime.kernel_variants import OfflineDriver, Recorder, ShapedModel, StepShape, variants_of
from tests.runtime.driver import Job as Sequence
from tests.runtime.real import run_jobs
from tests.runtime.team import build_team

MAX_ROWS = 96


def job_of(folder):
    return Job(model=str(folder), n_blocks=(4096,), max_rows=MAX_ROWS, max_model_tokens=4096)


def counted(folder):
    """How many variants of each kernel there are."""
    return Counter(variant.name for variant in variants_of(job_of(folder)))


def counted_in_fp8(folder):
    """The same with rounded weights."""
    return Counter(variant.name for variant in variants_of(replace(job_of(folder), quantize="fp8")))


def met_by_chance(folder, n_steps=150):
    """(variants, those that random steps ask for beside them)."""
    job = job_of(folder)
    ahead = {(variant.name, variant.key) for variant in variants_of(job)}
    recorder, model, rng = Recorder(job.capability), ShapedModel(job), Random(5)
    for _ in range(n_steps):
        rows = rng.choice([0, 1, rng.randint(1, MAX_ROWS)])
        keys = tuple(int(2 ** rng.uniform(0, 12)) for _ in range(rows))
        chunks = tuple(
            (tokens, tokens + rng.choice([0, rng.randint(0, 900)]))
            for tokens in (int(2 ** rng.uniform(0, 11)) for _ in range(rng.randint(0, 3)))
        )
        if keys or chunks:
            model.step(StepShape(keys, chunks))
            model.head(rng.randint(1, 400))
            model.sample(rng.randint(1, MAX_ROWS))
    recorder.close()
    return len(ahead), sorted(name for name, key in recorder.found.keys() - ahead)


def met_by_executor(folder, n_ranks=1):
    """(launches of a real executor with random requests, variants that it asks for and that were not foreseen)."""
    options = {"dtype": "float32", "max_rows": 8, "max_model_tokens": 128}
    executor = build_team(folder, n_ranks, load_format="dummy", kv_memory_bytes=2**20, **options)
    job = Job(model=str(folder), n_blocks=executor.n_blocks, n_ranks=n_ranks, **options)
    ahead = {(variant.name, variant.key) for variant in variants_of(job)}
    on, empty = Op.on, torch.empty
    Op.on = lambda self, device: "cuda" if "cuda" in self.implementations else on(self, device)
    chain._can_chain = lambda device: True
    torch.empty = lambda *size, **options: empty(*size, **options).zero_()  # nothing runs: results must be harmless
    recorder, rng = Recorder(job.capability), Random(3)
    params = [{"temperature": 0.0}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.1}]
    jobs = [
        Sequence(
            prompt=[rng.randrange(60) for _ in range(rng.randint(1, 90))],
            n_outputs=rng.randint(1, 6),
            sampling=SamplingParams(**rng.choice(params)),
        )
        for _ in range(20)
    ]
    run_jobs(executor, jobs, rng)
    recorder.close()
    executor.close()
    return len(recorder.found), sorted(name for name, key in recorder.found.keys() - ahead)


def met_by_two_ranks(folder):
    """The same for a model that two ranks share."""
    return met_by_executor(folder, n_ranks=2)


def hits_after_compiling(folder):
    """(variants compiled, what failed, whether launches that meet them find them)."""
    capability = job_of(folder).capability
    recorder = Recorder(capability)
    x_TD = torch.empty((4, 64), dtype=torch.bfloat16, device="meta")
    weight_D = torch.empty(64, dtype=torch.bfloat16, device="meta")
    rms_norm(x_TD, weight_D, 1e-6)
    rms_norm(x_TD[:1], weight_D, 1e-6, x_TD[:1])
    recorder.close()
    variants = tuple(recorder.found.values())
    _inherit(variants)
    errors = [done.error for at in range(len(variants)) if (done := _compile(at, False)).error is not None]
    seen = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: seen.append(cache_hit)
    triton.runtime.driver.set_active(OfflineDriver(capability))
    for variant in variants:
        variant.kernel.device_caches.clear()  # as in another process
    jit = type(variants[0].kernel)
    jit.__getitem__ = lambda self, grid: lambda *args, **options: self.run(*args, grid=grid, warmup=True, **options)
    rms_norm(x_TD, weight_D, 1e-6)
    rms_norm(x_TD[:1], weight_D, 1e-6, x_TD[:1])
    return len(variants), errors, seen


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
