"""The real decoder behind the executor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random

import pytest

from penstock.core.errors import ConfigError, ModelNotFound, PenstockError
from penstock.core.request import SamplingParams
from penstock.models.weights import load_model
from penstock.runtime.build import build_executor

from .driver import Job, expected_outputs
from .real import BUNDLED, WholeForward, run_jobs, shrunk_config

POOL = 64 * 2**20


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    """The bundled architecture, shrunk; weights are dummies."""
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    return tmp_path


def test_the_real_decoder_puts_out_the_same_in_any_interleaving(tiny_dir):
    executor = build_executor(
        tiny_dir, dtype="float32", kv_memory_bytes=POOL, max_rows=5, block_tokens=4, load_format="dummy"
    )
    rng = Random(3)
    jobs = [
        Job(
            prompt=[rng.randrange(61) for _ in range(rng.randint(1, 30))],
            n_outputs=rng.randint(1, 12),
            sampling=SamplingParams(temperature=rng.choice([0.0, 1.0]), top_k=rng.choice([0, 9])),
            seed=rng.randrange(2**63),
        )
        for _ in range(16)
    ]
    run_jobs(executor, jobs, rng)
    executor.close()
    whole = WholeForward(load_model(tiny_dir, dtype="float32", load_format="dummy"), executor.facts)
    assert [job.outputs for job in jobs] == [expected_outputs(whole, job) for job in jobs]


def test_the_bundled_model_decodes_in_a_batch_what_it_decodes_alone():
    executor = build_executor(BUNDLED, dtype="float32", kv_memory_bytes=POOL, max_rows=4)
    prompts = [[5, 90, 17, 1033], [2001, 8], [300 + n for n in range(40)]]
    jobs = [Job(prompt=prompt, n_outputs=6) for prompt in prompts]
    run_jobs(executor, jobs, Random(1))
    executor.close()
    whole = WholeForward(load_model(BUNDLED, dtype="float32"), executor.facts)
    assert [job.outputs for job in jobs] == [expected_outputs(whole, job) for job in jobs]


def test_phases_and_memory_are_told_before_they_are_needed(tiny_dir):
    told: list[str] = []
    executor = build_executor(
        tiny_dir,
        kv_memory_bytes=POOL,
        load_format="dummy",
        max_model_tokens=100,
        native_kernels=True,
        on_phase=lambda name, seconds: told.append(name),
        on_memory=lambda plan: told.append(plan.describe()[2]),
    )
    executor.close()
    assert told == [
        "import torch",
        "read config",
        "CPU kernels",
        "longest prompt: 99 tokens (limited by the model's context)",
        "load weights",
        "allocate KV",
        "warm up",
    ]
    assert executor.facts.max_model_tokens == 100
    assert executor.n_blocks == (POOL // executor.facts.states[0].block_bytes,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nonsense"}, "device 'nonsense' is not usable here"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"block_tokens": 0}, "block_tokens is 0"),
        ({"max_model_tokens": 129}, "max_model_tokens is 129: give 2 to 128"),
        ({"kv_memory_bytes": 5}, "give at least"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"quantize": "int3"}, "int3"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(tiny_dir, options, message):
    with pytest.raises(ConfigError, match=message) as refused:
        build_executor(tiny_dir, **{"load_format": "dummy", "kv_memory_bytes": POOL} | options)
    assert "\n" not in str(refused.value)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match="absent"):
        build_executor(tmp_path / "absent")


def test_pools_start_as_zeros(tiny_dir):
    executor = build_executor(tiny_dir, kv_memory_bytes=POOL, load_format="dummy", block_tokens=32)
    pools = executor._step._pools
    executor.close()
    assert [pool.shape for pool in pools] == [(2, executor.n_blocks[0], 32, 2, 8)] * 3
    assert all(not pool[:, 1:].any() and pool.is_contiguous() for pool in pools)  # block 0 served the warm-up
    assert dataclasses.asdict(executor.facts.states[0])["block_bytes"] == pools[0][:, 0].nbytes * 3


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantized_model_puts_out_the_same_in_any_interleaving(tiny_dir, quantize):
    executor = build_executor(
        tiny_dir,
        dtype="float32",
        kv_memory_bytes=POOL,
        max_rows=5,
        block_tokens=4,
        load_format="dummy",
        quantize=quantize,
    )
    rng = Random(4)
    prompts = [[rng.randrange(61) for _ in range(rng.randint(1, 30))] for _ in range(8)]
    jobs = [Job(prompt=prompt, n_outputs=5) for prompt in prompts]
    run_jobs(executor, jobs, rng)
    executor.close()
    decoder = load_model(tiny_dir, dtype="float32", load_format="dummy", quantize=quantize)
    whole = WholeForward(decoder, executor.facts)
    assert [job.outputs for job in jobs] == [expected_outputs(whole, job) for job in jobs]


def test_what_is_not_in_cpp_is_said(tiny_dir, caplog):
    executor = build_executor(tiny_dir, kv_memory_bytes=POOL, load_format="dummy", quantize="int8")
    executor.close()
    kernels = dict(executor.facts.kernels)
    assert kernels["paged_attention"] == "cpu"  # heads of 8 features
    assert kernels["layer"] == "op by op"
    (line,) = [record.message for record in caplog.records if record.message.startswith("not in C++")]
    assert "layer, " in line
    assert "paged_attention" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, "int3"),
        ({"quantize": "int8", "dtype": "float16"}, "float16"),
    ],
)
def test_a_quantization_that_cannot_be_is_refused(tiny_dir, options, message):
    with pytest.raises(PenstockError, match=message):
        load_model(tiny_dir, load_format="dummy", **options)
