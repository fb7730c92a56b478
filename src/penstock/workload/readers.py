"""Readers for published traces. Each opens a file by its header, streams it, and names file, line and field of a fault.

BurstGPT (csv): whole seconds since midnight of day 1; several rows share a second, in order of submission. Both column
sets are read, by name: the newer one adds Session ID and Elapsed time. 0 response tokens mark a failed request; such
rows stay, for they cost load too. Azure (csv): UTC times with 100 ns digits; the first row becomes 0.
Mooncake (JSON lines): milliseconds, and one hash per block of 512 tokens.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from penstock.core.errors import UnknownName
from penstock.workload.csv_rows import CsvRow, csv_columns, csv_in_order
from penstock.workload.parquet import read_parquet
from penstock.workload.trace import (
    Tally,
    Trace,
    TraceError,
    TraceHeader,
    TraceRequest,
    check_order,
    decode_line,
    open_rows,
    read_lines,
    read_trace,
)

MOONCAKE_BLOCK_TOKENS = 512
BURSTGPT_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
BURSTGPT_SESSION_COLUMNS = ("Session ID", "Elapsed time")
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
CSV_COLUMNS = {"burstgpt": BURSTGPT_COLUMNS, "azure": AZURE_COLUMNS}
MAX_FIRST_BYTES = 1 << 20
MAGIC = {b"PAR1": "parquet", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
LOG_TYPES = {"Conversation log": "conversation", "API log": "api"}


def open_trace(path: Path, format_name: str | None = None) -> Trace:
    """Open a trace of any known format; None looks at the first line."""
    name = format_name or detect_format(path)
    if name not in READERS:
        raise UnknownName("trace format", name, READERS)
    return READERS[name](path)


def detect_format(path: Path) -> str:
    """The format by the first line. A csv trace that lacks a column is still one: its reader says which."""
    with open_rows(path) as file:
        first = file.readline(MAX_FIRST_BYTES)
    if not first:
        raise TraceError(f"{path} is empty: there is no trace in it")
    for magic, name in MAGIC.items():
        if first.startswith(magic):
            return _of_magic(path, name)
    text = first.decode("utf-8-sig", errors="replace").strip()
    columns = {cell.strip().strip('"') for cell in text.split(",")}
    shares = {name: len(columns & set(required)) / len(required) for name, required in CSV_COLUMNS.items()}
    if max(shares.values()) > 0:
        return max(shares, key=lambda name: shares[name])
    keys = _keys(text)
    if "penstock_trace" in keys:
        return "penstock"
    if keys & {"input_length", "output_length", "hash_ids"}:
        return "mooncake"
    if keys & {"arrival_s", "input_tokens", "output_tokens"}:
        raise TraceError(
            f'{path}, line 1: a request, where the header of the trace should be. Put {{"penstock_trace": 1, '
            '"name": "..."} on a line before it.'
        )
    shown = repr(text[:60]) if text.isprintable() else "not text, and"
    raise TraceError(
        f"{path}, line 1: {shown} is the start of no known trace ({', '.join(READERS)}). "
        'Convert it to JSON lines with a header {"penstock_trace": 1, "name": ...}, or name its format.'
    )


def _of_magic(path: Path, name: str) -> str:
    if name != "parquet":
        raise TraceError(f"{path} is compressed ({name}): unpack it first")
    return name


def _keys(text: str) -> set[str]:
    try:
        row = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return set()
    return set(row) if isinstance(row, dict) else set()


def read_burstgpt(path: Path, *, spread_seed: int | None = 0) -> Trace:
    """BurstGPT csv. spread_seed: rows of one second are spread uniformly over it with this seed; None leaves them."""
    columns = csv_columns(path, BURSTGPT_COLUMNS)
    has_sessions = set(BURSTGPT_SESSION_COLUMNS) <= set(columns)
    spread = "left together" if spread_seed is None else f"spread over it (seed {spread_seed})"
    header = TraceHeader(
        name=path.stem,
        seed=spread_seed,
        parameters={"reader": "burstgpt", "has_sessions": has_sessions},
        steps=(f"read BurstGPT csv, rows of one second {spread}",),
    )
    tally = Tally()
    return Trace(header, lambda: _burstgpt_rows(path, spread_seed, has_sessions, tally), tally)


def _burstgpt_rows(path: Path, spread_seed: int | None, has_sessions: bool, tally: Tally) -> Iterator[TraceRequest]:
    rng = None if spread_seed is None else np.random.default_rng(spread_seed)
    tally.wrong_totals = 0
    sessions: dict[str, tuple[int, float | None]] = {}
    rows = csv_in_order(path, BURSTGPT_COLUMNS, lambda row: row.number("Timestamp"), "Timestamp")
    for second_s, group in itertools.groupby(rows, key=lambda timed: timed[0]):
        together = [row for _, row in group]
        offsets_s = np.zeros(len(together)) if rng is None else np.sort(rng.random(len(together)))
        for row, offset_s in zip(together, offsets_s.tolist(), strict=True):
            input_tokens, output_tokens = row.count("Request tokens"), row.count("Response tokens")
            tally.wrong_totals += row.count("Total tokens") != input_tokens + output_tokens
            arrival_s = round(second_s + offset_s, 6)
            turn = _burstgpt_turn(row, arrival_s, sessions) if has_sessions else {}
            yield TraceRequest(
                arrival_s=arrival_s,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                category=row.choice("Log Type", LOG_TYPES),
                model=row.text("Model"),
                **turn,
            )


def _burstgpt_turn(row: CsvRow, arrival_s: float, sessions: dict[str, tuple[int, float | None]]) -> dict[str, Any]:
    """The fields of a request that belongs to a session. sessions: the last turn of each, and when its answer ended."""
    elapsed_s = row.number("Elapsed time") if row.text("Elapsed time") else None
    session = row.text("Session ID")
    if not session:
        return {"elapsed_s": elapsed_s}
    last_turn, ended_s = sessions.get(session, (-1, None))
    pause_s = None if ended_s is None else max(0.0, round(arrival_s - ended_s, 6))
    if elapsed_s is not None:
        ended_s = arrival_s + elapsed_s
    sessions[session] = last_turn + 1, ended_s
    return {"session": session, "turn": last_turn + 1, "pause_s": pause_s, "elapsed_s": elapsed_s}


def write_burstgpt(path: Path, trace: Trace) -> int:
    """Write the columns that BurstGPT has; what it has no column for (clients, objectives, hashes) is left out."""
    has_sessions = trace.header.parameters.get("has_sessions", True)
    columns = [*BURSTGPT_COLUMNS[:1], *(BURSTGPT_SESSION_COLUMNS if has_sessions else ()), *BURSTGPT_COLUMNS[1:]]
    log_types = {category: log_type for log_type, category in LOG_TYPES.items()}
    count = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for request in trace:
            count += 1
            total = request.input_tokens + request.output_tokens
            session = (request.session or "", "" if request.elapsed_s is None else f"{request.elapsed_s:g}")
            log_type = log_types.get(request.category, "API log")
            lengths = (request.model, request.input_tokens, request.output_tokens, total, log_type)
            writer.writerow((int(request.arrival_s), *(session if has_sessions else ()), *lengths))
    return count


def read_azure(path: Path) -> Trace:
    """Azure LLM inference csv (2023 and 2024)."""
    csv_columns(path, AZURE_COLUMNS)
    header = TraceHeader(name=path.stem, parameters={"reader": "azure"}, steps=("read Azure LLM csv",))
    return Trace(header, lambda: _azure_rows(path))


def _azure_rows(path: Path) -> Iterator[TraceRequest]:
    start_ticks: int | None = None

    def since_start_s(row: CsvRow) -> float:
        nonlocal start_ticks
        ticks = row.utc_ticks("TIMESTAMP")
        start_ticks = ticks if start_ticks is None else start_ticks
        return (ticks - start_ticks) / 1e7

    for arrival_s, row in csv_in_order(path, AZURE_COLUMNS, since_start_s, "TIMESTAMP"):
        yield TraceRequest(
            arrival_s=arrival_s,
            input_tokens=row.count("ContextTokens"),
            output_tokens=row.count("GeneratedTokens"),
        )


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_mooncake(path: Path) -> Trace:
    """Mooncake JSON lines."""
    with open_rows(path):
        header = TraceHeader(
            name=path.stem,
            parameters={"reader": "mooncake"},
            block_tokens=MOONCAKE_BLOCK_TOKENS,
            steps=("read Mooncake JSON lines",),
        )
    return Trace(header, lambda: _mooncake_rows(path))


def _mooncake_rows(path: Path) -> Iterator[TraceRequest]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    earlier_s, number = 0.0, 0
    for number, line in enumerate(read_lines(path), start=1):
        row = decode_line(decoder, line, path, number)
        if row.timestamp < 0:
            raise TraceError(f"{path}, line {number}: timestamp is {row.timestamp:g}, expected milliseconds, 0 or more")
        try:
            request = TraceRequest(
                arrival_s=row.timestamp / 1e3,
                input_tokens=row.input_length,
                output_tokens=row.output_length,
                block_hashes=row.hash_ids,
            )
        except TraceError as error:
            said = str(error).replace("_tokens is", "_length is")  # as the file calls it
            raise TraceError(f"{path}, line {number}: {said}") from error
        if request.arrival_s < earlier_s:
            check_order(earlier_s, request.arrival_s, f"{path}, line {number}", "timestamp")
        earlier_s = request.arrival_s
        yield request
    if number == 0:
        raise TraceError(f"{path} is empty: nothing to replay")


READERS: Mapping[str, Callable[[Path], Trace]] = {
    "penstock": read_trace,
    "parquet": read_parquet,
    "burstgpt": read_burstgpt,
    "azure": read_azure,
    "mooncake": read_mooncake,
}
