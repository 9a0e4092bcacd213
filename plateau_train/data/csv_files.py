"""One column of numbers from a CSV file, read line by line."""

import contextlib
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from plateau_train.config import nearest
from plateau_train.errors import ConfigError

STANDARD_INPUT = "-"

# What is longer is no list of metrics: a picture, a device, the wrong file.
MOST_VALUES, LONGEST_LINE = 1_000_000, 1_000_000


class NumberColumn(NamedTuple):
    """The numbers of a column; ``num_empty`` cells held none."""

    name: str
    values: Sequence[float]
    num_empty: int


def parse_number(text: str, place: str) -> float:
    """Read a finite number; raises ``ConfigError`` that names its place."""
    if not _is_number(text):
        shown = f"{text[:40]!r}" if text.strip() else "nothing"
        raise ConfigError(
            f"{place} holds {shown}, which is no number",
            hint="numbers are written like 0.25 or 2.5e-1",
        )
    number = float(text)
    if not math.isfinite(number):
        raise ConfigError(
            f"{place} is {number}, which the rule would take for a plateau",
            hint="leave out what comes from there on: the training diverged",
        )
    return number


def read_column(source: str, name: str | None) -> NumberColumn:
    """Read a column by its name, or the only one that holds numbers.

    Commas, tabs or semicolons part the cells. Without a line of names in front the columns are
    called 1, 2, ... An empty cell is passed over: loggers leave it where nothing was measured.
    Raises ``ConfigError`` for everything that cannot be read as that, with the number of the line.
    """
    shown = "standard input" if source == STANDARD_INPUT else source
    with _told(shown), _open(source) as file:
        lines = _lines(file, shown)
        first = next(lines, "")
        delimiter = max(",\t;", key=first.count)
        reader = csv.reader(
            itertools.chain([first], lines), delimiter=delimiter, skipinitialspace=True
        )
        rows = (row for row in reader if any(cell.strip() for cell in row))
        names = [cell.strip() for cell in next(rows, [])]
        if names and all(map(_is_number, names)):
            rows = itertools.chain([names], rows)
            names = [str(number) for number, _ in enumerate(names, start=1)]
        head = next(rows, None)
        if head is None:
            raise ConfigError(f"{shown} holds no values", hint="one line for each value")
        column = _choose(names, head, name, shown)
        values: list[float] = []
        num_empty = 0
        for row in itertools.chain([head], rows):
            if column < len(row) and not row[column].strip():
                num_empty += 1
                continue
            place = f"{shown} line {reader.line_num}, {names[column]},"
            values.append(parse_number(row[column] if column < len(row) else "", place))
            if len(values) > MOST_VALUES:
                raise ConfigError(
                    f"{shown} has more than {MOST_VALUES:,} values", hint="give a part of them"
                )
    if not values:
        raise ConfigError(
            f"{shown} has a column {names[column]}, and no value in it",
            hint=f"its columns: {_listed(names)}",
        )
    return NumberColumn(names[column], values, num_empty)


def _choose(names: list[str], head: list[str], name: str | None, shown: str) -> int:
    """Return the place of the column that is asked for, or of the only one with numbers."""
    if name is None:
        numeric = [place for place, cell in enumerate(head[: len(names)]) if _is_number(cell)]
        if len(numeric) == 1:
            return numeric[0]
        raise ConfigError(
            f"{shown} has {len(numeric) or 'no'} columns of numbers", hint=_ask_for(names)
        )
    if names.count(name) == 1:
        return names.index(name)
    found = "two columns" if name in names else "no column"
    near = nearest(name, names)
    raise ConfigError(
        f"{shown} has {found} {name}"
        + (f" (did you mean {near}?)" if near not in (None, name) else ""),
        hint=_ask_for(names),
    )


def _ask_for(names: list[str]) -> str:
    return f"give one with --column NAME: {_listed(names)}"


def _listed(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False


def _open(source: str) -> IO[str]:
    # A byte order mark, which spreadsheets write, is no part of the first name.
    is_input = source == STANDARD_INPUT
    return open(0 if is_input else source, encoding="utf-8-sig", newline="", closefd=not is_input)


def _lines(file: IO[str], shown: str) -> Iterator[str]:
    """Yield the lines of a file, and never more than a bounded part of it."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ConfigError(
                f"{shown} has a line of more than {LONGEST_LINE:,} characters",
                hint="give a CSV file: one line for each value",
            )
        yield line


@contextlib.contextmanager
def _told(shown: str) -> Iterator[None]:
    """Say of a file that cannot be read why, and what could be."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(
            f"{shown} does not exist", hint="give a CSV file, a run folder, or - for standard input"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{shown} cannot be read: {error.strerror}", hint="give a readable CSV file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown} is no text in UTF-8", hint="save it as CSV, UTF-8") from error
    except csv.Error as error:
        raise ConfigError(f"{shown} is no CSV: {error}", hint="close each quote") from error
