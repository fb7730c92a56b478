"""What a user does wrong gives one line that says what, why and what to do, and never a traceback."""

from __future__ import annotations

import json
import shutil
import socket

import pytest

from penstock.options import BUNDLED

pytestmark = pytest.mark.xdist_group("server")


def one_line(error: str) -> str:
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("penstock: ")]
    assert len(lines) == 1, error
    return lines[0]


@pytest.fixture
def model_copy(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED["penstock-tiny"], folder)
    return folder


def test_an_unknown_model_directory(run_cli):
    code, _, error = run_cli("serve", "no/such/model")
    assert code == 2
    assert "no model at 'no/such/model'" in one_line(error)
    assert "penstock-tiny" in one_line(error)


def test_a_directory_without_a_model(run_cli, tmp_path):
    code, _, error = run_cli("serve", str(tmp_path), "--port", "0")
    assert code == 2
    one_line(error)


def test_corrupt_weights(run_cli, model_copy):
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    code, _, error = run_cli("serve", str(model_copy), "--port", "0")
    assert code == 2
    assert "model.safetensors" in one_line(error)


def test_a_corrupt_tokenizer_leaves_no_folder_behind(run_cli, model_copy, tmp_path, monkeypatch):
    (model_copy / "tokenizer.json").write_text("{")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    code, _, error = run_cli("serve", str(model_copy), "--port", "0")
    assert code == 2
    assert "tokenizer" in one_line(error)
    assert not list((tmp_path / "tmp").iterdir())


def test_an_unsupported_architecture(run_cli, model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    config |= {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (model_copy / "config.json").write_text(json.dumps(config))
    code, _, error = run_cli("serve", str(model_copy), "--port", "0")
    assert code == 2
    assert "MambaForCausalLM" in one_line(error)
    assert "LlamaForCausalLM" in one_line(error)


def test_a_port_in_use(run_cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, error = run_cli("serve", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "take another port" in one_line(error)


def test_an_open_server_without_a_key(run_cli):
    code, _, error = run_cli("serve", "--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert "no API key" in one_line(error)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--policy", "magic"), "known: cache-aware, conservative"),
        (("--order", "magic"), "known: edf, fcfs"),
        (("--set", "batch.budget_tokens=many"), "batch policy 'decode-first'"),
        (("--set", "batch.colour=red"), "known: budget_tokens"),
        (("--set", "nonsense"), "SLOT.OPTION=VALUE"),
        (("--kv-memory", "lots"), "4GiB"),
        (("--kv-memory", "1KiB"), "give at least"),
        (("--host-kv-memory", "1KiB"), "--host-kv-memory hold no block"),
        (("--host-kv-memory", "900TiB"), "--host-kv-memory do not fit"),
        (("--dtype", "int3"), "bfloat16"),
        (("--max-running", "0"), "give 1 or more"),
        (("--config", "none.toml"), "cannot read"),
    ],
)
def test_wrong_options(run_cli, arguments, expected):
    code, _, error = run_cli("serve", "--port", "0", *arguments)
    assert code == 2
    assert expected in one_line(error)


def test_a_configuration_file_sets_what_flags_set(run_cli, tmp_path):
    (tmp_path / "c.toml").write_text('policy = "nope"\n')
    code, _, error = run_cli("serve", "--port", "0", "--config", "c.toml")
    assert code == 2
    assert "policy preset 'nope'" in one_line(error)


def test_complete_and_chat_write_to_the_terminal(run_cli):
    code, out, error = run_cli("complete", "def f(", "--max-tokens", "5", "--kv-memory", "32MiB", "--temperature", "0")
    assert code == 0, error
    assert out.startswith("def f(")
    assert "5 tokens" in error
    code, out, error = run_cli("chat", "--max-tokens", "5", "--kv-memory", "32MiB", input_text="hello\n\n")
    assert code == 0, error
    assert "tokens, first after" in error


def test_what_can_be_switched_on_is_listed(run_cli):
    code, out, _ = run_cli("policies")
    assert code == 0
    for name in ("fcfs", "worst-case", "decode-first", "lru", "empirical-quantile", "conservative"):
        assert name in out
    assert run_cli("systems")[0] == 0
