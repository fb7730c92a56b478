"""What Triton compiles for a model is known before anything runs, and few.

Each case runs in a process of its own: in this one kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from penstock.bench.shapes import SHAPES
from penstock.ops.lazy import has_triton
from penstock.runtime.compile_ahead import CompilingAhead, Job

from .real import shrunk_config

pytestmark = pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 1000, "head_dim": 16}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def child(what, config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-W", "ignore", "-m", "tests.runtime.kernel_variants_child", what, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_meets_some_hundred_variants(name, tmp_path):
    counts = child("counted", SHAPES[name], tmp_path)
    assert 40 < sum(counts.values()) < 120, counts
    assert counts["long_segments"] == 1  # whatever the lengths


def test_rounded_weights_bring_kernels_of_their_own(tmp_path):
    counts = child("counted_in_fp8", SHAPES["qwen3-30b-a3b"], tmp_path)
    assert counts["_fp8_rows"] > 0
    assert sum(counts.values()) < 140, counts


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-30b-a3b"])
def test_no_step_asks_for_a_kernel_that_was_not_foreseen(name, tmp_path):
    small = EXPERTS if "num_experts" in SHAPES[name] else {}
    n_ahead, missed = child("met_by_chance", SHAPES[name] | SMALL | small, tmp_path)
    assert n_ahead > 40
    assert missed == []


@pytest.mark.parametrize("what", ["met_by_executor", "met_by_two_ranks"])
def test_a_real_executor_asks_for_nothing_else(what, tmp_path):
    n_met, missed = child(what, shrunk_config(), tmp_path)
    assert n_met > 15
    assert missed == []


def test_what_was_compiled_ahead_is_found_by_the_launch_that_needs_it(tmp_path):
    n_variants, errors, hits = child("hits_after_compiling", shrunk_config(), tmp_path)
    assert errors == []
    assert n_variants == 2
    assert hits == [True, True]


def test_a_program_that_fails_is_told_in_the_log_and_does_no_harm(tmp_path, caplog):
    ahead = CompilingAhead(Job(model=str(tmp_path / "nothing"), n_blocks=(1,)))
    ahead._process.wait()
    ahead._listener.join()
    assert "compiled when they are first needed, not ahead" in caplog.text
    assert "nothing" in caplog.text
    ahead.stop()
