"""Models whose layers keep different tokens: the simulator has the engine's state groups, and counts what is read."""

from __future__ import annotations

import json

import pytest

from penstock.hardware import described, hardware_of
from penstock.policy.presets import build_policies
from penstock.runtime.build import build_executor
from penstock.sim.run import Setup, fleet_of, run_of
from penstock.workload.measure import summarise
from tests.sim.parts import poisson_trace

GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
    "max_position_embeddings": 2048, "sliding_window": 32, "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "torch_dtype": "float32", "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "gemma"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(GEMMA2))
    return path


def test_state_groups_and_their_pools_are_those_of_the_engine(folder):
    executor = build_executor(folder, load_format="dummy", kv_memory_bytes=2**22, max_rows=4, torch_threads=1)
    try:
        hard = hardware_of(described(str(folder)), "l4", kv_bytes=2**22, max_rows=4)
        assert len(hard.facts.states) == 2
        assert hard.facts.states == executor.facts.states
        assert hard.facts.weight_bytes == executor.facts.weight_bytes
        assert hard.n_blocks == executor.n_blocks
    finally:
        executor.close()


def test_a_model_with_windows_is_simulated_with_its_groups(folder):
    hard = hardware_of(described(str(folder)), "l4", kv_bytes=2**19, max_rows=8)
    setup, trace = Setup(hardware=hard, policies=build_policies), poisson_trace(60, 1e3, outputs=(1, 200), seed=3)
    fleet = fleet_of(setup, trace)
    fleet.run(trace)
    fleet.instances[0].engine.scheduler.audit()
    assert summarise(run_of(setup, trace, fleet)).ok == 60


def test_streams_are_simulated_with_their_window():
    model = described("llama-8b")
    whole = hardware_of(model, "h200")
    stream = hardware_of(model, "h200", sink_tokens=4, window_tokens=1020)
    assert stream.facts.states[0].window_tokens == 1020
    assert stream.facts.max_model_tokens > whole.facts.max_model_tokens
