"""Rows of a csv trace by column name; whatever is wrong with one names the file, the line and the column."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from penstock.workload.trace import TraceError, check_order


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One row. Each method reads a column in one way or raises TraceError."""

    where: str  # file and line
    values: Mapping[str, str | None]

    def text(self, column: str) -> str:
        return (self.values.get(column) or "").strip()

    def number(self, column: str) -> float:
        try:
            value = float(self.text(column))
        except ValueError:
            raise self._wrong(column, "a number") from None
        if not 0 <= value < math.inf:
            raise self._wrong(column, "0 or more")
        return value

    def count(self, column: str) -> int:
        value = self.number(column)
        if value != int(value):
            raise self._wrong(column, "a whole number")
        return int(value)

    def choice(self, column: str, names: Mapping[str, str]) -> str:
        if self.text(column) not in names:
            raise self._wrong(column, " or ".join(names))
        return names[self.text(column)]

    def utc_ticks(self, column: str) -> int:
        """A time like 2023-11-16 18:15:46.6805900 in units of 100 ns; kept whole, floats would round it."""
        text = self.text(column).removesuffix("+00:00").removesuffix("Z")
        seconds, _, fraction = text.partition(".")
        try:
            moment = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
            return int(moment.timestamp()) * 10_000_000 + int(fraction[:7].ljust(7, "0"))
        except ValueError:
            raise self._wrong(column, "a UTC time like 2023-11-16 18:15:46.6805900") from None

    def _wrong(self, column: str, wanted: str) -> TraceError:
        return TraceError(
            f"{self.where}: {column} is {self.text(column)!r}, expected {wanted}. Correct or remove the row."
        )


@contextmanager
def _reader(path: Path, required: Sequence[str]) -> Iterator[csv.DictReader[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            found = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = found
            if not found:
                raise TraceError(f"{path} is empty: a csv trace starts with its column names")
            missing = [name for name in required if name not in found]
            if missing:
                raise TraceError(
                    f"{path}, line 1: no column {', '.join(missing)}; found {', '.join(found)}. "
                    "Is this the right format? Columns are read by name, in any order."
                )
            yield rows
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}. Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} is not a csv text file: {error}") from error


def csv_columns(path: Path, required: Sequence[str]) -> tuple[str, ...]:
    """The columns of a file. Raises TraceError where a required one is missing."""
    with _reader(path, required) as rows:
        return tuple(rows.fieldnames or ())


def csv_in_order(
    path: Path, required: Sequence[str], time_s: Callable[[CsvRow], float], column: str
) -> Iterator[tuple[float, CsvRow]]:
    """Walk the rows with their times, which must not go back. Raises TraceError if there is no row."""
    earlier_s: float | None = None
    with _reader(path, required) as rows:
        for values in rows:
            row = CsvRow(f"{path}, line {rows.line_num}", values)
            now_s = time_s(row)
            check_order(now_s if earlier_s is None else earlier_s, now_s, row.where, column)
            earlier_s = now_s
            yield now_s, row
    if earlier_s is None:
        raise TraceError(f"{path} has column names and no row: nothing to replay")
