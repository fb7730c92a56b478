"""The benchmark over HTTP: its load, what it reads from a foreign client, and the whole of it on a simulated engine."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.workload.readers import open_trace

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "http_load.py"
SHOWN = """
============ Serving Benchmark Result ============
Successful requests:                     499
Request throughput (req/s):              19.12
Request goodput (req/s):                 18.99
---------------Time to First Token----------------
Median TTFT (ms):                        57.10
P50 TTFT (ms):                           57.10
P99 TTFT (ms):                           183.00
P50 TPOT (ms):                           9.90
P99 TPOT (ms):                           16.80
"""


@pytest.fixture(scope="module")
def http_load():
    spec = importlib.util.spec_from_file_location("http_load", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_load_has_its_rate_and_lengths(http_load, tmp_path):
    http_load.write_load(tmp_path / "load.jsonl", 40, 25)
    rows = list(open_trace(tmp_path / "load.jsonl"))
    assert len(rows) == 1000
    assert rows[-1].arrival_s == pytest.approx(25, rel=0.15)
    for name, mean in (("input_tokens", 1024), ("output_tokens", 128)):
        lengths = [getattr(row, name) for row in rows]
        assert 0.2 * mean - 1 < min(lengths) < max(lengths) <= 1.8 * mean
        assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.1)


def test_figures_of_the_foreign_client_are_read_and_missing_ones_stay_missing(http_load):
    figures = http_load.read_figures(SHOWN)
    assert list(figures.values()) == [19.12, 18.99, 57.1, 183.0, 9.9, 16.8]
    assert http_load.read_figures("nothing")["useful/s"] is None


def test_cells_carry_the_ratio_to_the_peer(http_load, capsys):
    ours = {"server": "Penstock", "rate": 20} | dict.fromkeys(http_load.FIGURES, 30.0)
    peer = {"server": "peer", "rate": 20} | dict.fromkeys(http_load.FIGURES, 20.0)
    http_load._print_table([ours, peer])
    assert "30.0 (1.50)" in capsys.readouterr().out


def test_all_of_it_runs_on_a_simulated_engine():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), "--executor", "simulated", "--device", "h200", "--rates", "4"]
    done = subprocess.run([*command, "--seconds", "2", "--port", str(port)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [(row["server"], row["ended"]) for row in rows] == [
        ("Penstock, default", {"ok": 8}),
        ("Penstock, in-time", {"ok": 8}),
    ]
    assert all(0 < row["useful/s"] == row["done/s"] for row in rows)
