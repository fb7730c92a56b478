"""The step log: what came, what was planned, what that was expected to take and what it took; a JSON line each.

A thread writes it a few times a second, so that neither a slow disk nor a thread that wakes up holds up a step; what it
has written survives the death of the process. When a file is full it becomes FILE.1, and a new one begins: a log takes
`MOST_BYTES` at most. Every file begins with a header that says all that a replay needs to build the engine again.

No token is logged. The blocks of a prompt have names, hashes under a key that nobody keeps, which tell only which
prompts begin alike.

A *turn* is one call of `Engine.step`; what comes between two of them stands with the number of the later one. So a
replay puts everything where it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.errors import ConfigError, UserError
from penstock.core.executor import ModelFacts, StepResult
from penstock.core.plan import Plan, Toward
from penstock.core.request import NO_OBJECTIVE, Objective, Request
from penstock.engine.costs import Foreseen
from penstock.engine.messages import Update

log = logging.getLogger("penstock.engine")
FORMAT_VERSION = 1
MOST_BYTES = 256 * 2**20  # of both files
MOST_WAITING = 100_000  # lines that the writer may be behind
WRITE_EVERY_S = 0.1


class StepLogError(UserError):
    """A step log cannot be read, or not be replayed."""

    code = "invalid_step_log"


class Header(msgspec.Struct, tag="header", frozen=True, kw_only=True):
    """What engine it was. is_whole: everything since its start is in this file."""

    facts: ModelFacts
    n_blocks: tuple[int, ...]
    n_host_blocks: tuple[int, ...]
    max_rows: int
    look_ahead: int
    prefix_caching: bool
    policy: str
    slots: dict[str, str]
    policy_options: dict[str, dict[str, Any]]
    max_queued_requests: int
    max_queued_tokens: int
    device: str
    cost: str = ""
    is_whole: bool = True
    penstock_step_log: int = FORMAT_VERSION


class Arrival(msgspec.Struct, tag="arrival", frozen=True, kw_only=True, omit_defaults=True):
    """A request that was accepted. blocks: names of the whole blocks of its prompt, each for all up to it."""

    turn: int
    at_s: float
    arrival_s: float
    id: str
    prompt_tokens: int
    blocks: tuple[int, ...]
    seed: int
    max_tokens: int | None = None
    n: int = 1
    prompt_logprobs: int | None = None
    priority: int = 0
    client: str = ""
    program: str | None = None
    request_turn: int = 0
    category: str = ""
    objective: Objective = NO_OBJECTIVE


class Cut(msgspec.Struct, tag="cut", frozen=True, kw_only=True, omit_defaults=True):
    """A request was ended from outside: aborted, or, with an index, at a stop string behind so many outputs."""

    turn: int
    at_s: float
    id: str
    index: int | None = None
    output_tokens: int = 0


class End(msgspec.Struct, tag="end", frozen=True, kw_only=True, omit_defaults=True):
    """A sample is over. is_by_token: the model ended it."""

    id: str
    index: int
    output_tokens: int
    is_by_token: bool = False
    queue_s: float | None = None
    ttft_s: float | None = None
    e2e_s: float = 0.0


class Step(msgspec.Struct, tag="step", frozen=True, kw_only=True, omit_defaults=True):
    """A plan and what came of it. chunks: (start, stop, first layer, stop layer) of each. model_s, predicted_s: what
    the cost model says, and corrected by the steps before; band_frac: its band. host_s: the engine's own work on it.
    """

    turn: int
    plan: int
    at_s: float
    decode_rows: int
    decode_keys: float
    chunks: tuple[tuple[int, int, int, int | None], ...] = ()
    samples: int = 0
    starts: int = 0
    ends: int = 0
    out_blocks: int = 0
    in_blocks: int = 0
    device_s: float
    host_s: float
    model_s: float | None = None
    predicted_s: float | None = None
    band_frac: float | None = None
    is_extrapolated: bool = False


class Lost(msgspec.Struct, tag="lost", frozen=True):
    """So many lines were dropped here: the disk is too slow."""

    lines: int


Record = Header | Arrival | Cut | End | Step | Lost


class StepLog:
    """Written by one engine. most_bytes: of both files together. Raises ConfigError if the file cannot be opened."""

    def __init__(self, path: Path, header: Header, most_bytes: int = MOST_BYTES) -> None:
        self.turn = 0
        self._path, self._header, self._most_bytes = path, header, most_bytes
        self._block_tokens = header.facts.states[0].block_tokens
        self._key = os.urandom(16)
        self._out: deque[tuple[int, float, Plan, Foreseen, float]] = deque()
        self._lines: deque[Any] = deque()
        self._is_over = threading.Event()
        self._n_lost = 0
        try:
            self._file = self._opened(is_whole=True)
        except OSError as error:
            raise ConfigError(f"cannot write the step log {path}: {error.strerror}; give another --step-log") from None
        self._encoder = msgspec.json.Encoder()
        self._thread = threading.Thread(target=self._write, name="step-log", daemon=True)
        self._thread.start()

    # --- called by the engine -----------------------------------------------------------------------------------------
    def note_arrival(self, request: Request, now_s: float) -> None:
        self._put((self.turn, now_s, request))

    def note_cut(self, request_id: str, now_s: float, index: int | None = None, output_tokens: int = 0) -> None:
        self._put(Cut(turn=self.turn, at_s=now_s, id=request_id, index=index, output_tokens=output_tokens))

    def note_plan(self, plan: Plan, foreseen: Foreseen, at_s: float, host_s: float) -> None:
        """A plan went out."""
        self._out.append((self.turn, at_s, plan, foreseen, host_s))

    def note_result(self, result: StepResult, host_s: float) -> None:
        """The oldest plan that is out was carried out; host_s: the work on its result."""
        self._put((*self._out.popleft(), result.device_s, host_s))

    def note_updates(self, updates: Sequence[Update]) -> None:
        if updates:
            self._put(updates)

    def close(self) -> None:
        """Wait until everything is written."""
        self._is_over.set()
        self._thread.join()

    def _put(self, what: Any) -> None:
        if len(self._lines) >= MOST_WAITING:
            self._n_lost += 1
            return
        if self._n_lost:
            self._lines.append(Lost(self._n_lost))
            self._n_lost = 0
        self._lines.append(what)

    # --- the thread ---------------------------------------------------------------------------------------------------
    def _write(self) -> None:
        try:
            while not self._is_over.wait(WRITE_EVERY_S):
                self._write_what_waits()
            self._write_what_waits()
        except OSError as error:
            log.error("the step log ends here, %s cannot be written: %s", self._path, error.strerror)
        finally:
            os.close(self._file)

    def _write_what_waits(self) -> None:
        while self._lines:
            for record in self._records(self._lines.popleft()):
                self._line(record)

    def _line(self, record: Record) -> None:
        line = self._encoder.encode(record) + b"\n"
        if self._n_bytes + len(line) > self._most_bytes // 2:
            os.close(self._file)
            self._file = self._opened(is_whole=False)
        os.write(self._file, line)
        self._n_bytes += len(line)

    def _opened(self, *, is_whole: bool) -> int:
        if self._path.exists() and self._path.stat().st_size:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        line = msgspec.json.encode(msgspec.structs.replace(self._header, is_whole=is_whole)) + b"\n"
        os.write(file, line)
        self._n_bytes = len(line)
        return file

    def _records(self, what: Any) -> Iterator[Record]:
        match what:
            case Cut() | Lost():
                yield what
            case list():
                yield from _ends(what)
            case (turn, at_s, Request() as request):
                yield self._arrival(turn, at_s, request)
            case (turn, at_s, Plan() as plan, Foreseen() as foreseen, plan_s, device_s, result_s):
                yield _step(turn, at_s, plan, foreseen, device_s, plan_s + result_s)

    def _arrival(self, turn: int, at_s: float, request: Request) -> Arrival:
        return Arrival(
            turn=turn,
            at_s=at_s,
            arrival_s=request.arrival_s,
            id=request.id,
            prompt_tokens=len(request.prompt),
            blocks=tuple(self._names(request)),
            seed=request.seed,
            max_tokens=request.sampling.max_tokens,
            n=request.sampling.n,
            prompt_logprobs=request.sampling.prompt_logprobs,
            priority=request.priority,
            client=request.client,
            program=request.program,
            request_turn=request.turn,
            category=request.category,
            objective=request.objective,
        )

    def _names(self, request: Request) -> Iterator[int]:
        digest = request.cache_salt.encode()
        for start in range(0, len(request.prompt) - self._block_tokens + 1, self._block_tokens):
            content = digest + request.prompt[start : start + self._block_tokens].tobytes()
            digest = hashlib.blake2b(content, digest_size=6, key=self._key).digest()
            yield int.from_bytes(digest, "little")


def _ends(updates: Sequence[Update]) -> Iterator[End]:
    for update in updates:
        if update.finish is not None and update.stats is not None:
            stats = update.stats
            yield End(
                id=update.request_id,
                index=update.index,
                output_tokens=stats.output_tokens,
                is_by_token=update.stop_token is not None,
                queue_s=stats.queue_s,
                ttft_s=stats.ttft_s,
                e2e_s=stats.e2e_s,
            )


def _step(turn: int, at_s: float, plan: Plan, foreseen: Foreseen, device_s: float, host_s: float) -> Step:
    model, corrected = foreseen.model, foreseen.corrected
    return Step(
        turn=turn,
        plan=plan.id,
        at_s=at_s,
        decode_rows=foreseen.load.decode_rows,
        decode_keys=foreseen.load.decode_keys,
        chunks=tuple((chunk.start, chunk.stop, chunk.first_layer, chunk.stop_layer) for chunk in plan.chunks),
        samples=foreseen.load.samples,
        starts=len(plan.starts),
        ends=len(plan.ends),
        out_blocks=sum(move.toward is Toward.HOST for move in plan.moves),
        in_blocks=sum(move.toward is Toward.DEVICE for move in plan.moves),
        device_s=device_s,
        host_s=host_s,
        model_s=None if model is None else model.seconds,
        predicted_s=None if corrected is None else corrected.seconds,
        band_frac=None if corrected is None else corrected.band_frac,
        is_extrapolated=corrected is not None and corrected.is_extrapolated,
    )


def read_step_log(path: Path) -> Iterator[tuple[int, Record]]:
    """(line, record), the header first. A last line without its end is left out: the process died while it wrote.

    Raises StepLogError naming file and line.
    """
    decoder = msgspec.json.Decoder(Record)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
                    raise StepLogError(f"{path}, line {number}: not a line of a step log: {wrong}") from None
                if (number == 1) != isinstance(record, Header):
                    what = "is no header" if number == 1 else "is a second header"
                    raise StepLogError(f"{path}, line {number}: {what}; give a file of `penstock serve --step-log`")
                if isinstance(record, Header) and record.penstock_step_log != FORMAT_VERSION:
                    raise StepLogError(
                        f"{path}, line 1: version {record.penstock_step_log}, this release reads {FORMAT_VERSION}"
                    )
                yield number, record
    except OSError as error:
        raise StepLogError(f"cannot read the step log {path}: {error.strerror}") from None
