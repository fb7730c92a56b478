"""Check that clients people already use work with Penstock, unmodified.

    python benchmarks/clients/run.py                  # lm-eval, then guidellm
    python benchmarks/clients/run.py aiperf           # one of them

For each client: make its environment, start a server, run the released command, read what the client wrote and what
the server counted, stop the server. Exit code 0: every client ended well and no request failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path

from clients import BY_DEFAULT, CLIENTS, Case, Client
from server import Server, failures

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CASE_TIMEOUT_S = 900.0


def main() -> int:
    options = parse_arguments()
    options.scratch.mkdir(parents=True, exist_ok=True)
    problems = []
    for name in options.clients or BY_DEFAULT:
        bin_path = install(CLIENTS[name], options.scratch / name)
        with Server(options.penstock, options.scratch / f"{name}-server.log", options.server_option) as server:
            for case in CLIENTS[name].cases:
                problems += [f"{name}, {case.name}: {problem}" for problem in check(case, server, bin_path, options)]
    for problem in problems:
        print(f"FAILED  {problem}")
    print("some clients failed" if problems else "all clients passed")
    return 1 if problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", help=f"of {', '.join(CLIENTS)}; default: {', '.join(BY_DEFAULT)}")
    parser.add_argument("--scratch", type=Path, default=HERE / ".venvs", help="environments, caches, results, logs")
    parser.add_argument(
        "--penstock", type=Path, default=ROOT / ".venv" / "bin" / "penstock", help="the command to test"
    )
    parser.add_argument(
        "--server-option",
        action="append",
        default=[],
        help="an argument for `penstock serve`, as --server-option=--dtype=float32",
    )
    options = parser.parse_args()
    if unknown := [name for name in options.clients if name not in CLIENTS]:
        parser.error(f"no such client: {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    if not options.penstock.exists():
        parser.error(f"{options.penstock} does not exist; run `make demo` once, or name another with --penstock")
    options.scratch = options.scratch.resolve()
    return options


def install(client: Client, path: Path) -> Path:
    """An environment with nothing but this client; made anew if its requirement changed."""
    stamp = path / "installed.txt"
    if not stamp.exists() or stamp.read_text() != client.requirement:
        print(f"installing {client.requirement} into {path}", flush=True)
        venv.create(path, with_pip=True, clear=True)
        pip = [path / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", HERE / "constraints.txt", client.requirement], check=True)
        stamp.write_text(client.requirement)
    return path / "bin"


def check(case: Case, server: Server, bin_path: Path, options: argparse.Namespace) -> list[str]:
    """Run one command of a client; returns what went wrong."""
    out_path = options.scratch / "results" / case.name
    out_path.mkdir(parents=True, exist_ok=True)
    for old in out_path.rglob("*.json*"):
        old.unlink()
    paths = {"model_path": shown(server.model_path), "out": shown(out_path)}
    fields = {"url": server.url, "model": server.model, **paths}
    command = [word.format(**fields) for word in shlex.split(case.command)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    environment = {
        **os.environ,
        "PATH": f"{bin_path}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(options.scratch / "huggingface"),
        "COLUMNS": "120",
        **case.environment,
    }
    environment = {name: value for name, value in environment.items() if value is not None}
    before = server.counters()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, timeout=CASE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [f"it did not end within {CASE_TIMEOUT_S:.0f} s"]
    seen = Counter(server.counters())
    seen.subtract(before)
    counted = ", ".join(f"{what}: {count}" for what, count in sorted(seen.items()) if count)
    print(f"the server counted: {counted}", flush=True)
    if done.returncode:
        return [f"exit code {done.returncode}", *failures(seen)]
    try:
        return case.problems(out_path) + failures(seen)
    except FileNotFoundError as error:
        return [str(error), *failures(seen)]


def shown(path: Path) -> str:
    """Short where it can be: commands run in the root of the repository."""
    return f"./{path.relative_to(ROOT)}" if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
