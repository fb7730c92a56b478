"""Two ranks in processes of their own: the same tokens, and none of them outlives another."""

from __future__ import annotations

import os
import signal
import threading
import time

import httpx
import psutil
import pytest

from penstock import LLM, SamplingParams
from penstock.core.errors import ConfigError, EngineDied
from tests.integration.conftest import ServerProcess, running_server

pytestmark = pytest.mark.xdist_group("server")
OPTIONS = {"kv_memory": "32MiB", "dtype": "float32", "threads": 1, "max_running": 8}
PROMPTS = ["def quicksort(", "class Stack:\n", "def quicksort(items", "import "]
SAMPLING = [SamplingParams(max_tokens=12, temperature=t, seed=3, ignore_eos=True) for t in (0.0, 0.0, 0.9, 0.0)]
GONE_S = 20.0


def tokens_of(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, SAMPLING, use_tqdm=False)]


def ranks_below(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "penstock.rank_main" in child.cmdline()]


def wait_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    assert not alive


def test_two_ranks_write_what_one_writes_until_one_is_killed():
    with LLM(**OPTIONS) as alone:
        expected = tokens_of(alone)
    with LLM(**OPTIONS, tensor_parallel_size=2) as llm:
        assert tokens_of(llm) == expected
        (rank,) = ranks_below(psutil.Process())
        threading.Timer(0.3, rank.send_signal, (signal.SIGKILL,)).start()
        with pytest.raises(EngineDied, match=rf"rank 1 of 2 \(process {rank.pid}\) ended by signal 9"):
            llm.generate(PROMPTS, SamplingParams(max_tokens=1500, ignore_eos=True), use_tqdm=False)
    wait_gone([rank])


def test_what_keeps_ranks_from_starting_is_one_line_and_leaves_no_process():
    with pytest.raises(ConfigError, match="--tensor-parallel 3 does not divide this model: ") as refused:
        LLM(**OPTIONS, tensor_parallel=3)
    assert "\n" not in str(refused.value)
    assert not ranks_below(psutil.Process())


def test_ranks_and_their_engine_end_together_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running_server("--tensor-parallel", "2", "--kv-memory", "32MiB") as server:
        engine, rank = processes_of(server)
        os.kill(rank.pid, signal.SIGKILL)  # while nothing runs: the engine notices by itself
        server.wait_for(f"rank 1 of 2 (process {rank.pid}) ended by signal 9: starting it again")
        wait_gone([engine, rank])
        left = set(tmp_path.glob("penstock-ranks-*"))
        server.wait_for("serving ", n=2)
        server.wait_until("/ready", 200)
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=60)
        assert answer.status_code == 200
        engine, rank = processes_of(server)
        (folder,) = set(tmp_path.glob("penstock-ranks-*"))
        os.kill(engine.pid, signal.SIGKILL)
        wait_gone([engine, rank])
        assert not left
        assert not folder.exists()
        engine, rank = processes_of(server)  # the next ones, while they start
        os.kill(server.process.pid, signal.SIGKILL)
        wait_gone([engine, rank])


def processes_of(server: ServerProcess) -> tuple[psutil.Process, psutil.Process]:
    """The engine and its other rank, when they are there."""
    deadline_s = time.monotonic() + GONE_S
    while time.monotonic() < deadline_s:
        for engine in psutil.Process(server.process.pid).children():
            if len(ranks := ranks_below(engine)) == 1:
                return engine, ranks[0]
        time.sleep(0.05)
    raise AssertionError(f"no engine with two ranks; the server printed {server.lines}")
