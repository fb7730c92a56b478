"""A Penstock server for one client: started on a free port, watched by its own counters, stopped at the end."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
SAMPLE = re.compile(r"^(penstock_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class Server:
    """Use it with `with`; it is ready inside, and stopped outside."""

    def __init__(self, penstock: Path, log_path: Path, options: list[str]) -> None:
        self._command = [str(penstock), "serve", "--port", "0", *options]
        self._log_path = log_path

    def __enter__(self) -> Server:
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.url = self._wait_ready()
            card = self._get("/v1/models")["data"][0]
        except BaseException:
            self.__exit__()
            raise
        self.model, self.model_path = card["id"], Path(card["root"])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def counters(self) -> Counter[str]:
        """Responses by route and status, samples by how they ended, and clients that left before their answer did."""
        counts: Counter[str] = Counter()
        for name, labels, value in SAMPLE.findall(self._read("/metrics")):
            label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if name == "penstock_responses_total":
                counts[f"{label['route']} {label['status']}"] = int(float(value))
            elif name == "penstock_samples_ended_total":
                counts[f"ended by {label['reason']}"] = int(float(value))
            elif name == "penstock_clients_gone_total":
                counts["clients gone"] = int(float(value))
        return counts

    def _wait_ready(self) -> str:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            time.sleep(0.1)
            listening = re.search(r"^listening on (\S+)", self._log_path.read_text(), re.MULTILINE)
            if listening is None:
                continue
            self.url = listening[1]
            try:
                self._read("/ready")
            except (urllib.error.URLError, ConnectionError):  # 503 until the engine serves
                continue
            return self.url
        raise RuntimeError(
            f"the server was not ready within {START_TIMEOUT_S:.0f} s; it wrote:\n{self._log_path.read_text()}"
        )

    def _read(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return response.read().decode()

    def _get(self, path: str) -> dict:
        return json.loads(self._read(path))


def failures(seen: Counter[str]) -> list[str]:
    """What a server must not have counted while a client was at it. Clients retry, so only the server knows."""
    bad = []
    for what, count in sorted(seen.items()):
        route, _, status = what.rpartition(" ")
        is_bad_status = route.startswith("/v1/") and status != "200"
        is_bad_end = what in ("ended by abort", "ended by error", "clients gone")
        if count and (is_bad_status or is_bad_end):
            bad.append(f"{what}: {count}")
    return bad
