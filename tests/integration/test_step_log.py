"""A real server writes a step log, dies, and what it did can be replayed."""

from __future__ import annotations

import json
import time
import urllib.request

from penstock.cost.devices import DEVICES
from penstock.hardware import measured_cost
from penstock.sim.calibrate import Log, cost_differences
from penstock.sim.replay_log import replay_decisions
from tests.integration.conftest import ServerProcess


def ask(server: ServerProcess, **body: object) -> None:
    data = json.dumps({"ignore_eos": True, "temperature": 0, **body}).encode()
    request = urllib.request.Request(server.url + "/v1/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        json.load(answer)


def test_what_a_killed_server_had_decided_is_decided_again(tmp_path):
    path = tmp_path / "steps.jsonl"
    server = ServerProcess("--step-log", str(path))
    try:
        server.wait_until("/ready", 200)
        for n in (3, 30, 30):
            ask(server, prompt="import os " * n, max_tokens=9, n=2)
        deadline_s = time.monotonic() + 20
        while path.read_bytes().count(b'"type":"end"') < 6 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        server.engine().kill()
        server.wait_for("the engine process ended by signal 9")
    finally:
        server.stop()
    before = path.with_name("steps.jsonl.1")  # the engine that was started after the death has a file of its own
    log = Log.read(before if before.exists() else path)
    assert sum(end.output_tokens for end in log.ends.values()) == 6 * 9
    known = measured_cost("penstock-tiny", "cpu", None)
    assert replay_decisions(log, DEVICES["cpu"], known) == (len(log.steps), None)
    assert len(cost_differences(log, None)) == len(log.steps) - sum(not (s.decode_rows or s.chunks) for s in log.steps)
