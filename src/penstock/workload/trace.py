"""One trace record and Penstock's own trace file.

A file is JSON lines: a header first (`TraceHeader`, marked by `penstock_trace`), then one `TraceRequest` a line in
order of arrival. Both ends stream: a trace of millions of rows is read and written with one row in memory.

A `Trace` is a header and a *source*, a function that starts a fresh pass over the rows. So a trace can be walked
twice, and transformations (transform.py) stay lazy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from penstock.core.errors import UserError
from penstock.core.request import NO_OBJECTIVE, Objective

FORMAT_VERSION = 1
MOST_TOKENS = 100_000_000  # a larger length is a broken file, and would be a prompt that fills the memory
MAX_LINE_BYTES = 64 << 20


class TraceError(UserError):
    """A trace or a generator's parameters are wrong. Names file, line and field where there are any."""

    code = "invalid_trace"


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One request of a trace, as the world sent it. A struct: it is made in a sixth of a dataclass's time.

    arrival_s: since the start of the trace. session, turn: a conversation and the place in it, from 0. pause_s: think
    time between the answer to the turn before and this one, for closed-loop replay. input_tokens: the whole prompt,
    earlier turns included. output_tokens: 0 marks a request that failed when it was recorded. block_hashes: identity
    of the prompt's blocks of `TraceHeader.block_tokens` tokens; equal leading hashes are a shared prefix.
    prompt_ids, prompt_text: the prompt itself where the trace has one. elapsed_s: how long the recorded answer took.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int
    client: str = ""
    session: str | None = None
    turn: int = 0
    pause_s: float | None = None
    category: str = ""
    model: str = ""
    objective: Objective = NO_OBJECTIVE
    block_hashes: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    prompt_text: str | None = None
    elapsed_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.arrival_s < inf:
            raise TraceError(f"arrival_s is {self.arrival_s}: a trace starts at 0 and times are finite")
        if not (0 <= self.input_tokens <= MOST_TOKENS and 0 <= self.output_tokens <= MOST_TOKENS and self.turn >= 0):
            self._check_counts()
        if self.pause_s is not None and not 0 <= self.pause_s < inf:
            raise TraceError(f"pause_s is {self.pause_s}: give seconds, 0 or more")

    def _check_counts(self) -> None:
        for name in ("input_tokens", "output_tokens", "turn"):
            value = getattr(self, name)
            if value < 0:
                raise TraceError(f"{name} is {value}: a count cannot be negative")
            if value > MOST_TOKENS and name != "turn":
                raise TraceError(f"{name} is {value}: no model reads or writes more than {MOST_TOKENS:,} tokens")

    @property
    def is_failed(self) -> bool:
        return self.output_tokens == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """What a trace is and how it came about; enough to make it again.

    parameters: those of the generator, if one made it. block_tokens: tokens per block hash. steps: the reader and
    each transformation since, in order.
    """

    penstock_trace: int = FORMAT_VERSION  # first, so that a file shows in its first bytes what it is
    name: str
    seed: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    block_tokens: int | None = None
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.penstock_trace != FORMAT_VERSION:
            raise TraceError(
                f"penstock_trace is {self.penstock_trace}, this release reads version {FORMAT_VERSION}: "
                "convert the trace with the release that wrote it"
            )
        if self.block_tokens is not None and self.block_tokens < 1:
            raise TraceError(f"block_tokens is {self.block_tokens}: give 1 or more")


@dataclass(slots=True)
class Tally:
    """What a reader noticed in its last walk. wrong_totals: rows whose total is not the sum of their parts."""

    wrong_totals: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """A header and a way to walk the requests from the start, in order of arrival, as often as asked.

    tally: kept by the reader, if it keeps one.
    """

    header: TraceHeader
    source: Callable[[], Iterator[TraceRequest]]
    tally: Tally | None = None

    def __iter__(self) -> Iterator[TraceRequest]:
        return self.source()

    @classmethod
    def of(cls, header: TraceHeader, requests: Iterable[TraceRequest]) -> Trace:
        """A trace held in memory. Raises TraceError where the requests are not in order of arrival."""
        rows = tuple(requests)
        for number, (earlier, later) in enumerate(itertools.pairwise(rows), start=1):
            check_order(earlier.arrival_s, later.arrival_s, f"{header.name}, request {number}", "arrival_s")
        return cls(header, lambda: iter(rows))


def check_order(earlier_s: float, later_s: float, where: str, column: str) -> None:
    if later_s < earlier_s:
        raise TraceError(
            f"{where}: {column} goes back from {earlier_s:g} to {later_s:g} s; a trace is in order of arrival. "
            "Sort the file by that column."
        )


DecodedT = TypeVar("DecodedT")
_header_decoder = msgspec.json.Decoder(TraceHeader)
_request_decoder = msgspec.json.Decoder(TraceRequest)


def write_trace(path: Path, trace: Trace) -> int:
    """Write header and requests, one at a time. Returns how many requests were written."""
    encoder, count = msgspec.json.Encoder(), 0
    with path.open("wb") as file:
        file.write(encoder.encode(trace.header) + b"\n")
        for request in trace:
            file.write(encoder.encode(request) + b"\n")
            count += 1
    return count


def read_trace(path: Path) -> Trace:
    """Open a trace of our own format. Rows are read as the trace is walked; a wrong one raises TraceError there."""
    first = next(read_lines(path), b"")
    if not first.strip():
        raise TraceError(f"{path} is empty: a trace starts with a header line")
    header = decode_line(_header_decoder, first, path, 1)
    return Trace(header, lambda: _rows(path))


def open_rows(path: Path) -> BinaryIO:
    """Open for reading bytes; a file that cannot be opened is the user's mistake and says so in one line."""
    if path.exists() and not path.is_file():
        raise TraceError(f"cannot read the trace {path}: it is no plain file, and a trace is walked more than once")
    try:
        return path.open("rb")
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}. Check the path.") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """One line at a time, however long the file is. Raises TraceError for a line that is no line of any trace."""
    number = 0
    with open_rows(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise TraceError(
                    f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; a trace has one request a line"
                )
            yield line


def _rows(path: Path) -> Iterator[TraceRequest]:
    earlier_s, count = 0.0, 0
    for number, line in enumerate(itertools.islice(read_lines(path), 1, None), start=2):
        if not line.strip():
            continue
        request = decode_line(_request_decoder, line, path, number)
        if request.arrival_s < earlier_s:
            check_order(earlier_s, request.arrival_s, f"{path}, line {number}", "arrival_s")
        earlier_s, count = request.arrival_s, count + 1
        yield request
    if count == 0:
        raise TraceError(f"{path} has a header and no request: nothing to replay")


def decode_line(decoder: msgspec.json.Decoder[DecodedT], line: bytes, path: Path, number: int) -> DecodedT:
    """Raises TraceError with file and line; the message of msgspec names the field."""
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, TraceError) as error:
        hint = "" if line.endswith(b"\n") else ". It is the last line and has no end: the file may have been cut off"
        raise TraceError(f"{path}, line {number}: {error}{hint}") from error
