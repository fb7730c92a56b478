"""Which room may know which: the arrows of docs/architecture.md, lazy imports included."""

from __future__ import annotations

import subprocess
import sys

import grimp
import pytest

SHELLS = {
    "bench", "calibrate", "cli", "demo", "demonstrations", "engine_main", "flags", "hardware", "kernel_commands",
    "launch", "listing", "llm", "options", "profile_commands", "profiling", "rank_main", "serve", "simulate",
    "softmax_commands", "terminal",
}  # fmt: skip
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "formats": {"core"},
    "policy": {"core"},
    "cache": {"core"},
    "text": {"core", "formats"},
    "workload": {"core"},
    "engine": {"core", "policy", "cache", "cost", "text"},
    "cost": {"core"},
    "sim": {"engine", "policy", "cache", "cost", "core", "workload"},
    "ops": set(),
    "models": {"ops", "formats", "core"},
    "runtime": {"models", "ops", "core"},
    "api": {"engine", "text", "core"},
    "train": {"models", "ops", "bundled"},
    "bundled": set(),
}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("penstock", cache_dir=None)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def test_every_module_stands_in_a_known_room(graph):
    rooms = {room for module in graph.modules if (room := room_of(module)) is not None}
    assert rooms <= ALLOWED.keys() | SHELLS


def test_arrows_point_inward(graph):
    wrong = []
    for module in sorted(graph.modules):
        room = room_of(module)
        if room not in ALLOWED:
            continue
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            to = room_of(imported)
            if to not in (None, room) and to not in ALLOWED[room]:
                wrong.append(f"{module} -> {imported}")
    assert not wrong


def imported_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import penstock",
        "import penstock.engine.loop, penstock.engine.client, penstock.policy.presets, penstock.cache.memory",
        "import penstock.workload.replay",
        "import penstock.cli",
        "import penstock.api.app, penstock.text.tokenizer",
    ],
)
def test_whatever_decides_replays_or_answers_http_needs_no_torch(statement):
    assert "torch" not in imported_by(statement)


def test_importing_penstock_loads_no_server_parts():
    loaded = imported_by("import penstock, penstock.engine.loop")
    assert not loaded & {"uvicorn", "zmq", "transformers", "matplotlib"}
