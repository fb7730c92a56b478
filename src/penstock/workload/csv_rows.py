"""Rows of a csv trace by column name; whatever is wrong with one names the file, the line and the column."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from penstock.workload.trace import MOST_TOKENS, TraceError, check_order, read_lines


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One row. Each method reads a column in one way or raises TraceError. places: of the columns, by name."""

    path: Path
    line: int
    cells: list[str]
    places: Mapping[str, int]

    def text(self, column: str) -> str:
        place = self.places.get(column)
        return "" if place is None or place >= len(self.cells) else self.cells[place].strip()

    def number(self, column: str) -> float:
        try:
            value = float(self.text(column))
        except ValueError:
            raise self._wrong(column, "a number") from None
        if not 0 <= value < math.inf:
            raise self._wrong(column, "0 or more")
        return value

    def count(self, column: str) -> int:
        text = self.text(column)
        if text.isdecimal() and (count := int(text)) <= MOST_TOKENS:  # nearly always
            return count
        value = self.number(column)
        if value != int(value):
            raise self._wrong(column, "a whole number")
        if value > MOST_TOKENS:
            raise self._wrong(column, f"at most {MOST_TOKENS:,}")
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
        place = self.places.get(column, 0)
        if place >= len(self.cells):
            said = f"the row ends after {len(self.cells)} of {len(self.places)} columns, before {column}"
        else:
            said = f"{column} is {self.text(column)!r}, expected {wanted}"
        return TraceError(f"{self.path}, line {self.line}: {said}. Correct or remove the row.")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file. Raises TraceError naming the line that holds something else."""
    for number, line in enumerate(read_lines(path), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise TraceError(
                f"{path}, line {number}: byte {error.start} is {line[error.start]:#04x}, which is no UTF-8 text. "
                "The file is damaged, or no csv file."
            ) from error
        if "\0" in text:
            raise TraceError(f"{path}, line {number}: holds a zero byte. The file is damaged, or no csv file.")
        yield text


def csv_columns(path: Path, required: Sequence[str]) -> tuple[str, ...]:
    """The columns of a file. Raises TraceError where a required one is missing."""
    return tuple(_places(path, csv.reader(text_lines(path)), required))


def _places(path: Path, rows: Iterator[list[str]], required: Sequence[str]) -> dict[str, int]:
    found = {name.strip(): place for place, name in enumerate(next(rows, ()))}
    if not found:
        raise TraceError(f"{path} is empty: a csv trace starts with its column names")
    missing = [name for name in required if name not in found]
    if missing:
        raise TraceError(
            f"{path}, line 1: no column {', '.join(missing)}; found {', '.join(found)}. "
            "Is this the right format? Columns are read by name, in any order."
        )
    return found


def csv_in_order(
    path: Path, required: Sequence[str], time_s: Callable[[CsvRow], float], column: str
) -> Iterator[tuple[float, CsvRow]]:
    """Walk the rows with their times, which must not go back. Raises TraceError if there is no row."""
    earlier_s: float | None = None
    rows = csv.reader(text_lines(path))
    places = _places(path, rows, required)
    try:
        for cells in rows:
            if not cells:  # an empty line
                continue
            row = CsvRow(path, rows.line_num, cells, places)
            now_s = time_s(row)
            if earlier_s is not None and now_s < earlier_s:
                check_order(earlier_s, now_s, f"{path}, line {row.line}", column)
            earlier_s = now_s
            yield now_s, row
    except csv.Error as error:
        raise TraceError(f"{path}, line {rows.line_num}: {error}. The file is damaged, or no csv file.") from error
    if earlier_s is None:
        raise TraceError(f"{path} has column names and no row: nothing to replay")
