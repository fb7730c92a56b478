"""From starting Python to the first streamed token of the bundled model, as a client of `penstock serve` sees it.

    python benchmarks/startup/first_token.py --runs 5

Each run starts a server on a free port, asks for a completion as soon as it says that it serves, and stops it. Last
line: JSON with the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request


def run_once() -> dict[str, float]:
    """Seconds since the process was started: listening, serving, first token."""
    began_s = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "serve", "--port", "0", "--kv-memory", "256MiB"],
        stderr=subprocess.PIPE,
        text=True,
    )
    times: dict[str, float] = {}
    url = ""
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if line.startswith("listening on "):
                url, times["listening_s"] = line.split()[-1], time.monotonic() - began_s
            if line.startswith("serving "):
                times["serving_s"] = time.monotonic() - began_s
                break
        threading.Thread(target=lambda: [None for _ in server.stderr or ()], daemon=True).start()
        body = json.dumps({"prompt": "def quicksort(", "max_tokens": 8, "stream": True}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
            times["first_token_s"] = time.monotonic() - began_s
            answer.read()
    finally:
        server.terminate()
        server.wait(timeout=30)
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = [run_once() for _ in range(parser.parse_args().runs)]
    for times in runs:
        print(json.dumps({name: round(value, 2) for name, value in times.items()}))
    print(json.dumps({f"median_{name}": round(statistics.median(r[name] for r in runs), 2) for name in runs[0]}))


if __name__ == "__main__":
    main()
