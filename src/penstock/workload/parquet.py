"""Our own format as a Parquet file: a column per field of `TraceRequest`, the header in the file's metadata.

A file from elsewhere needs no header, only the three columns that every request has. Both ends stream, a batch of rows
at a time. Parquet is read with pyarrow, an extra: it is ten times the size of everything else that traces need.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from penstock.workload.trace import Trace, TraceError, TraceHeader, TraceRequest, check_order, open_rows

HEADER_KEY = b"penstock_trace"
BATCH_ROWS = 8192
GROUP_ROWS = 65_536
REQUIRED = ("arrival_s", "input_tokens", "output_tokens")


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TraceError(
            "Parquet traces need pyarrow: pip install 'penstock[parquet]', or convert the trace to JSON lines elsewhere"
        ) from error
    return pyarrow


def read_parquet(path: Path) -> Trace:
    """Open a Parquet trace. Raises TraceError without pyarrow, or for a file that is none."""
    with _opened(path) as file:
        known = TraceRequest.__struct_fields__
        missing = [name for name in REQUIRED if name not in file.schema_arrow.names]
        unknown = [name for name in file.schema_arrow.names if name not in known]
        if missing or unknown:
            said = f"no column {', '.join(missing)}" if missing else f"unknown column {', '.join(unknown)}"
            raise TraceError(
                f"{path}: {said}. A request has {', '.join(known)}; all but the first three may be absent."
            )
        text = (file.schema_arrow.metadata or {}).get(HEADER_KEY)
    try:
        header = TraceHeader(name=path.stem) if text is None else msgspec.json.decode(text, type=TraceHeader)
    except (msgspec.DecodeError, TraceError) as error:
        raise TraceError(f"{path}, metadata {HEADER_KEY.decode()}: {error}") from error
    return Trace(header, lambda: _rows(path))


def _opened(path: Path) -> Any:
    pyarrow = _pyarrow()
    open_rows(path).close()  # says in one line why it cannot be read
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise TraceError(f"{path} is no Parquet file, or was cut off: {_first_line(error)}") from error


def _rows(path: Path) -> Iterator[TraceRequest]:
    pyarrow = _pyarrow()
    earlier_s, number = 0.0, 0
    with _opened(path) as file:
        batches = file.iter_batches(batch_size=BATCH_ROWS)
        while True:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError) as error:
                raise TraceError(f"{path}, behind row {number}: cannot be read: {_first_line(error)}") from error
            if batch is None:
                break
            for row in batch.to_pylist():
                number += 1
                request = _request(row, path, number)
                check_order(earlier_s, request.arrival_s, f"{path}, row {number}", "arrival_s")
                earlier_s = request.arrival_s
                yield request
    if number == 0:
        raise TraceError(f"{path} has columns and no row: nothing to replay")


def _request(row: dict[str, Any], path: Path, number: int) -> TraceRequest:
    for name in REQUIRED:
        if row[name] is None:
            raise TraceError(f"{path}, row {number}: {name} is null, and every request has one")
    try:
        return msgspec.convert({name: value for name, value in row.items() if value is not None}, TraceRequest)
    except (msgspec.ValidationError, TraceError) as error:
        raise TraceError(f"{path}, row {number}: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_parquet(path: Path, trace: Trace) -> int:
    """Write header and requests, a group of rows at a time. Returns how many requests were written."""
    pyarrow = _pyarrow()
    schema = _schema(pyarrow).with_metadata({HEADER_KEY: msgspec.json.encode(trace.header)})
    rows, count = iter(trace), 0
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(rows, GROUP_ROWS)):
            try:
                table = pyarrow.Table.from_pylist(msgspec.to_builtins(group), schema=schema)
            except (pyarrow.ArrowException, OverflowError) as error:
                where = f"requests {count + 1} to {count + len(group)}"
                raise TraceError(f"cannot write {path}, {where}: {_first_line(error)}") from error
            writer.write_table(table)
            count += len(group)
    return count


def _schema(pyarrow: Any) -> Any:
    limits = pyarrow.struct([(name, pyarrow.float64()) for name in ("ttft_s", "tpot_s", "deadline_s", "weight")])
    types = {
        "arrival_s": pyarrow.float64(),
        "input_tokens": pyarrow.int64(),
        "output_tokens": pyarrow.int64(),
        "turn": pyarrow.int64(),
        "pause_s": pyarrow.float64(),
        "elapsed_s": pyarrow.float64(),
        "objective": limits,
        "block_hashes": pyarrow.list_(pyarrow.int64()),
        "prompt_ids": pyarrow.list_(pyarrow.int64()),
    }
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in TraceRequest.__struct_fields__])
