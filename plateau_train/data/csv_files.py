"""One column of numbers from a CSV file, read line by line."""

import csv
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from plateau_train.config import did_you_mean
from plateau_train.errors import ConfigError

STANDARD_INPUT = "-"

# A longer file is not a list of metrics, but for example a picture or a device.
MAX_VALUES, MAX_LINE_CHARS = 1_000_000, 1_000_000

# Plain or scientific notation, and what is not finite. Python reads more: 1_000 and other digits.
NUMBER = re.compile(
    r"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE
)
NUMBER_HINT = "write numbers like 0.25 or 2.5e-1"
COLUMN_HINT = "choose one with --column NAME"
UNNAMED = "value"


# The number of a line, and its cells.
Row = tuple[int, list[str]]


class NumberColumn(NamedTuple):
    """The numbers of a column, without its ``num_empty`` empty cells."""

    name: str
    values: Sequence[float]
    num_empty: int


def parse_number(text: str, place: str) -> float:
    """Read a finite number; raises ``ConfigError`` that begins with ``place``."""
    if not _is_number(text):
        problem = f"{place} is {repr(text[:40]) if text.strip() else 'empty'}"
        raise ConfigError(f"{problem}, not a number", hint=NUMBER_HINT)
    number = float(text)
    if not math.isfinite(number):
        problem = f"{place} is {number}, which would count as no improvement"
        hint = "leave out the values from there on: the training diverged"
        raise ConfigError(problem, hint=hint)
    return number


def read_column(source: str, name: str | None) -> NumberColumn:
    """Read the column with a name, or the only column of numbers.

    Cells are separated by tabs, semicolons, commas or white space, whichever of these the first
    line has. Without a header line the columns are named 1, 2, ..., and a single one ``value``; a
    single line of numbers is a column as well. An empty cell is skipped: loggers write it where
    nothing was measured. Raises ``ConfigError`` with the number of a line that cannot be read.
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
    reader = _split_cells(_read_lines(file, shown))
    rows = ((reader.line_num, row) for row in reader if any(map(str.strip, row)))
    names, rows = _split_header(rows)
    head = next(rows, None)
    if head is None:
        raise ConfigError(f"{shown} has no values", hint="write one value per line")
    column = _column_index(names, head[1], name, shown)
    values: list[float] = []
    num_empty = 0
    for number, row in itertools.chain([head], rows):
        line = f"{shown} line {number}"
        if any(map(str.strip, row[len(names) :])):
            columns = f"{len(names)} column{'s' if len(names) > 1 else ''}"
            problem = f"{line} has {len(row)} cells for {columns}"
            raise ConfigError(
                f"{problem}: {_join(names)}", hint=f"{NUMBER_HINT}, with no comma inside a number"
            )
        others = (cell for index, cell in enumerate(row) if index != column)
        if name is None and any(map(_is_number, others)):
            problem = f"{line} has a number outside the column {names[column]}"
            raise ConfigError(problem, hint=f"{COLUMN_HINT}: {_join(names)}")
        if column < len(row) and not row[column].strip():
            num_empty += 1
            continue
        cell = row[column] if column < len(row) else ""
        values.append(parse_number(cell, f"{line}, {names[column]},"))
        if len(values) > MAX_VALUES:
            problem = f"{shown} has more than {MAX_VALUES:,} values"
            raise ConfigError(problem, hint="leave some of them out")
    if not values:
        problem = f"{shown} has no value in the column {names[column]}"
        raise ConfigError(problem, hint=f"{COLUMN_HINT}: {_join(names)}")
    return NumberColumn(names[column], values, num_empty)


def _split_header(rows: Iterator[Row]) -> tuple[list[str], Iterator[Row]]:
    """Return the names of the columns and the rows of values."""
    number, cells = next(rows, (0, []))
    if not any(map(str.strip, cells[:1])) or any(map(_is_name, cells)):
        names = [cell.strip() for cell in cells]
        # Two columns must not have this name.
        unnamed = "" if UNNAMED in names else UNNAMED
        return [name or unnamed for name in names], rows
    following = list(itertools.islice(rows, 1))
    if not following:  # a single line
        return [UNNAMED], iter([(number, [cell]) for cell in cells])
    names = [f"{place}" for place in range(1, len(cells) + 1)] if len(cells) > 1 else [UNNAMED]
    return names, itertools.chain([(number, cells)], following, rows)


def _column_index(names: list[str], head: list[str], name: str | None, shown: str) -> int:
    """Return the index of the column with a name, or of the only one with a number in ``head``."""
    if name is not None and names.count(name) == 1:
        return names.index(name)
    numeric = [index for index, cell in enumerate(head[: len(names)]) if _is_number(cell)]
    if name is None and len(numeric) == 1:
        return numeric[0]
    if name is None and len(names) == 1:  # the value is refused, with its line
        return 0
    problem = f"no column {name}{did_you_mean(name, names)}"
    hint = f"{COLUMN_HINT}: {_join(names)}"
    if name is None and numeric:
        problem = f"{len(numeric)} columns of numbers"
    elif name is None:
        problem, hint = "no column of numbers", f"{NUMBER_HINT}; its columns: {_join(names)}"
    elif name in names:
        problem = f"two columns {name}"
    raise ConfigError(f"{shown} has {problem}", hint=hint)


def _join(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text.strip()) is not None


def _is_name(text: str) -> bool:
    """Return whether a cell names a column; without letters it is a number, a date or an error."""
    return not _is_number(text) and any(map(str.isalpha, text))


def _split_cells(lines: Iterator[str]) -> Any:
    """Return a CSV reader of lines; their separator is one that the first line with text has."""
    start: list[str] = []
    while sum(map(bool, map(str.strip, start))) < 2 and (line := next(lines, "")):
        start.append(line)
    first, second, *_ = (*filter(str.strip, start), "", "")
    lines = itertools.chain(start, lines)
    separators = [each for each in "\t;," if each in first]
    words = first.split()
    # The name of a single column may contain spaces.
    is_row = all(map(_is_number, words)) or len(words) == len(second.split())
    if not separators and len(words) > 1 and is_row:
        separators = [" "]
        lines = (" ".join(line.split()) for line in lines)
    return csv.reader(lines, delimiter=(*separators, ",")[0], skipinitialspace=True)


def _read_lines(file: IO[str], shown: str) -> Iterator[str]:
    """Yield the lines of a file; raises ``ConfigError`` before a long line fills the memory."""
    while line := file.readline(MAX_LINE_CHARS):
        if len(line) == MAX_LINE_CHARS:
            problem = f"{shown} has a line of more than {MAX_LINE_CHARS:,} characters"
            raise ConfigError(problem, hint="give a CSV file with one value per line")
        yield line
