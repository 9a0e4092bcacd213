"""One column of numbers from a CSV file, read line by line."""

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from plateau_train.config import did_you_mean
from plateau_train.errors import ConfigError

STANDARD_INPUT = "-"

# A longer file is not a list of metrics but a picture, a device or another file by mistake.
MAX_VALUES, MAX_LINE_CHARS = 1_000_000, 1_000_000


class NumberColumn(NamedTuple):
    """The numbers of a column, without its ``num_empty`` empty cells."""

    name: str
    values: Sequence[float]
    num_empty: int


def parse_number(text: str, place: str) -> float:
    """Read a finite number; raises ``ConfigError`` that begins with ``place``."""
    if not _is_number(text):
        problem = f"{place} holds {repr(text[:40]) if text.strip() else 'nothing'}"
        hint = "write numbers like 0.25 or 2.5e-1"
        raise ConfigError(f"{problem}, which is not a number", hint=hint)
    number = float(text)
    if not math.isfinite(number):
        problem = f"{place} is {number}, which would count as no improvement"
        hint = "leave out the values from there on: the training diverged"
        raise ConfigError(problem, hint=hint)
    return number


def read_column(source: str, name: str | None) -> NumberColumn:
    """Read the column with a name, or the only column of numbers.

    Cells are separated by commas, tabs or semicolons. Without a header line the columns are named
    1, 2, ... An empty cell is skipped: loggers write it where nothing was measured. Raises
    ``ConfigError`` with the number of the line for a file that cannot be read so.
    """
    is_input = source == STANDARD_INPUT
    shown, path = ("standard input", 0) if is_input else (source, source)
    try:
        # Spreadsheets write a byte order mark, which would become part of the first name.
        with open(path, encoding="utf-8-sig", newline="", closefd=not is_input) as file:
            return _read(file, name, shown)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if is_missing else f"cannot be read: {error.strerror}"
        hint = "give a CSV file, a run folder, or - for standard input"
    except UnicodeDecodeError:
        problem, hint = "is not UTF-8 text", "save it as CSV in UTF-8"
    except csv.Error as error:
        problem, hint = f"is not valid CSV: {error}", "close each quote"
    raise ConfigError(f"{shown} {problem}", hint=hint)


def _read(file: IO[str], name: str | None, shown: str) -> NumberColumn:
    lines = _read_lines(file, shown)
    first = next(lines, "")
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, skipinitialspace=True)
    rows = (row for row in reader if any(map(str.strip, row)))
    names = [cell.strip() for cell in next(rows, [])]
    if names and all(map(_is_number, names)):
        rows = itertools.chain([names], rows)
        names = [str(number) for number in range(1, len(names) + 1)]
    head = next(rows, None)
    if head is None:
        raise ConfigError(f"{shown} holds no values", hint="write one value per line")
    column = _column_index(names, head, name, shown)
    values: list[float] = []
    num_empty = 0
    for row in itertools.chain([head], rows):
        if column < len(row) and not row[column].strip():
            num_empty += 1
            continue
        place = f"{shown} line {reader.line_num}, {names[column]},"
        values.append(parse_number(row[column] if column < len(row) else "", place))
        if len(values) > MAX_VALUES:
            problem = f"{shown} has more than {MAX_VALUES:,} values"
            raise ConfigError(problem, hint="give a part of them")
    if not values:
        problem = f"{shown} has no value in the column {names[column]}"
        raise ConfigError(problem, hint=f"its columns: {_join(names)}")
    return NumberColumn(names[column], values, num_empty)


def _column_index(names: list[str], head: list[str], name: str | None, shown: str) -> int:
    """Return the index of the column with a name, or of the only one with a number in ``head``."""
    if name is not None and names.count(name) == 1:
        return names.index(name)
    numeric = [index for index, cell in enumerate(head[: len(names)]) if _is_number(cell)]
    if name is None and len(numeric) == 1:
        return numeric[0]
    problem = f"no column {name}{did_you_mean(name, names)}"
    if name is None:
        problem = f"{len(numeric) or 'no'} columns of numbers"
    elif name in names:
        problem = f"two columns {name}"
    hint = f"choose one with --column NAME: {_join(names)}"
    raise ConfigError(f"{shown} has {problem}", hint=hint)


def _join(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_lines(file: IO[str], shown: str) -> Iterator[str]:
    """Yield the lines of a file; raises ``ConfigError`` before a long line fills the memory."""
    while line := file.readline(MAX_LINE_CHARS):
        if len(line) == MAX_LINE_CHARS:
            problem = f"{shown} has a line of more than {MAX_LINE_CHARS:,} characters"
            raise ConfigError(problem, hint="give a CSV file with one value per line")
        yield line
