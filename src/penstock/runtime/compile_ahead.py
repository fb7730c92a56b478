"""Compiles the Triton kernels of a model before its first requests ask for them, in processes of their own.

Triton compiles a kernel when it is first launched; that takes about a second, and a server's first requests meet
dozens. What a model can meet is known from its configuration (`kernel_variants`). Those are compiled in parallel into
the cache on disk, where Triton looks before it compiles. Nobody waits for it, and a kernel that is asked for earlier is
compiled as ever.

`python -m penstock.runtime.compile_ahead '{"model": ...}'` is the program behind it; `--report` prints what there is.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
CORES_LEFT = 2  # for what is going on meanwhile: loading weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be compiled for.

    n_blocks: of the pools of each state group, as they will be: a number of 64 bits is another type than one of 32.
    capability: 90 for a Hopper. n_ranks: that hold a share of the model each.
    """

    model: str
    n_blocks: tuple[int, ...]
    dtype: str = "auto"
    quantize: str = "none"
    max_rows: int = 64
    block_tokens: int = 16
    max_model_tokens: int | None = None
    window_tokens: int | None = None
    sink_tokens: int = 0
    capability: int = 90
    n_ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A variant that lies in the cache now. stack_bytes: registers that did not suffice were spilled there."""

    kernel: str
    seconds: float
    registers: int | None = None
    stack_bytes: int | None = None
    error: str | None = None


class CompilingAhead:
    """The program, running beside an engine that starts; what it did is told in the log."""

    def __init__(self, job: Job) -> None:
        command = [sys.executable, "-m", __name__, json.dumps(asdict(job))]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._is_over = False
        self._listener = threading.Thread(target=self._listen, name="compile-ahead", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        output, _ = self._process.communicate()
        last = output.strip().splitlines()[-1:] or ["it said nothing"]
        if self._process.returncode == 0:
            log.info("kernels: %s", last[0])
        elif not self._is_over:
            log.warning("kernels are compiled when they are first needed, not ahead: %s", last[0])

    def stop(self) -> None:
        """End it, finished or not."""
        self._is_over = True
        self._process.terminate()


def capability_of(device: torch.device) -> int:
    """Of a GPU, as one number: 90 for 9.0."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def compile_all(job: Job, *, has_details: bool) -> Iterable[Compiled]:
    """Compile every variant, as many at a time as there are cores to spare; in the order in which they get ready."""
    from penstock.runtime.kernel_variants import variants_of

    variants = variants_of(job)
    workers = max(1, (os.cpu_count() or 1) - CORES_LEFT)
    by_fork = multiprocessing.get_context("fork")  # they inherit the kernels, whose source is read once
    with ProcessPoolExecutor(workers, mp_context=by_fork, initializer=_inherit, initargs=(variants,)) as pool:
        for done in as_completed([pool.submit(_compile, at, has_details) for at in range(len(variants))]):
            yield done.result()


_variants: tuple[Any, ...] = ()  # of a worker process


def _inherit(variants: tuple[Any, ...]) -> None:
    global _variants
    _variants = variants


def _compile(at: int, has_details: bool) -> Compiled:
    variant = _variants[at]
    began_s = time.perf_counter()
    try:
        kernel = variant.kernel.preload(variant.data)
    except Exception as error:  # noqa: BLE001  - told by kernel; the others go on
        return Compiled(kernel=variant.name, seconds=time.perf_counter() - began_s, error=repr(error))
    seconds = time.perf_counter() - began_s
    if not has_details:
        return Compiled(kernel=variant.name, seconds=seconds)
    registers, stack_bytes = _resources(kernel.asm["cubin"])
    return Compiled(kernel=variant.name, seconds=seconds, registers=registers, stack_bytes=stack_bytes)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) per thread."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = dict(word.split(":") for word in shown.split() if word.count(":") == 1 and word.split(":")[1].isdigit())
    return int(words["REG"]), int(words["STACK"])


def main(arguments: list[str]) -> int:
    """The last line says how it went."""
    raw = json.loads(arguments[0])
    job = Job(**{**raw, "n_blocks": tuple(raw["n_blocks"])})
    began_s = time.perf_counter()
    has_report = "--report" in arguments
    done = list(compile_all(job, has_details=has_report))
    failed = [one for one in done if one.error is not None]
    if has_report:
        _print_report(done)
    for one in failed:
        print(f"{one.kernel}: {one.error}")
    print(f"{len(done) - len(failed)} of {len(done)} variants compiled ahead in {time.perf_counter() - began_s:.1f} s")
    return int(bool(failed))


def _print_report(done: list[Compiled]) -> None:
    print("| kernel | variants | seconds, all | longest | registers, most | stack bytes, most |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in sorted({one.kernel for one in done}):
        ones = [one for one in done if one.kernel == name]
        registers, stack_bytes = (max(v for one in ones if (v := getattr(one, f)) is not None) for f in DETAILS)
        seconds = [one.seconds for one in ones]
        print(f"| {name} | {len(ones)} | {sum(seconds):.1f} | {max(seconds):.1f} | {registers} | {stack_bytes} |")


DETAILS = ("registers", "stack_bytes")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
