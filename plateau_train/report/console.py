"""Terminal output: log messages, errors, tables, and the progress of a training run.

Results go to stdout, everything else goes to stderr. On a terminal, text is wrapped and styled;
elsewhere each row is one plain line, flushed.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from plateau_train.errors import ChangedSettingsError, PlateauTrainError

MISSING = "-"  # the text for a value of None in a table


def printable(text: object) -> str:
    """Escape the characters that could control the terminal, line breaks included."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


@contextlib.contextmanager
def _console(*, to_stderr: bool = False) -> Iterator[Console]:
    """Yield a console, and write what was printed on it when the block ends.

    It is written with ``print`` because a progress bar replaces ``sys.stdout`` and ``sys.stderr``
    by files that write above the bar; a ``Console`` bypasses them.
    """
    console = Console(stderr=to_stderr, highlight=False)
    with console.capture() as capture:
        yield console
    print(capture.get(), end="", file=sys.stderr if to_stderr else sys.stdout, flush=True)


def print_text(console: Console, text: Text | str) -> None:
    """Print text, wrapped on a terminal; elsewhere there is no width to wrap to."""
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


class _LogHandler(logging.Handler):
    """Print log messages to stderr: each line of a warning as a notice, others dimmed."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        with _console(to_stderr=True) as console:
            if record.levelno < logging.WARNING:
                print_text(console, Text(printable(message), style="dim"))
                return
            lines = [printable(line) for line in message.split("\n")]
            if console.is_terminal:
                text = Text("\n".join(lines))
                console.print(Panel(text, title="NOTICE", style="bold yellow", expand=False))
            else:
                for line in lines:
                    print_text(console, f"NOTICE: {line}")


def configure_logging(*, is_quiet: bool = False) -> None:
    """Print what the package logs, on stderr; if quiet, only warnings.

    A second call replaces the handler of the first.
    """
    log = logging.getLogger("plateau_train")
    log.setLevel(logging.INFO)
    log.propagate = False  # other libraries configure the root logger
    for handler in [each for each in log.handlers if isinstance(each, _LogHandler)]:
        log.removeHandler(handler)
    log.addHandler(_LogHandler(logging.WARNING if is_quiet else logging.INFO))


def print_error(error: PlateauTrainError) -> None:
    """Print each problem on a line, and then the hint, on stderr."""
    with _console(to_stderr=True) as console:
        for problem in error.problems:
            print_text(console, Text.assemble(("error: ", "bold red"), printable(problem)))
        if isinstance(error, ChangedSettingsError):
            grid = RichTable.grid(padding=(0, 2, 0, 0))
            for row in error.table:
                grid.add_row("", *(Text(printable(cell)) for cell in row))
            if not console.is_terminal:
                console.width = 1000  # one row stays one line
            console.print(grid)
        print_text(console, Text.assemble(("hint: ", "bold cyan"), printable(error.hint)))


def print_rows(rows: Mapping[str, str], *, to_stderr: bool = False) -> None:
    """Print names and their texts, on a terminal with a hanging indent."""
    with _console(to_stderr=to_stderr) as console:
        for name, text in rows.items():
            if console.is_terminal:
                grid = RichTable.grid(padding=(0, 2))
                grid.add_column(width=8, style="bold")
                grid.add_column(overflow="fold")
                grid.add_row(name, Text(printable(text)))
                console.print(grid)
            else:
                print_text(console, f"{name:<8}  {printable(text)}")


class Column(NamedTuple):
    """A column of a table: a field or a function of the rows, its title, and its format.

    ``form`` is a format specification, or a function from the value to its text. ``item`` is the
    index or key of the value if the field is a tuple or a mapping. Numbers are aligned to the
    right, words to the left.
    """

    field: str | Callable[[Any], Any]
    title: str
    form: str | Callable[[Any], str] = ""
    is_number: bool = True
    item: int | str | None = None

    def text_of(self, row: object) -> str:
        """Return the text of a row in this column."""
        value = getattr(row, self.field) if isinstance(self.field, str) else self.field(row)
        if value is not None and self.item is not None:
            value = value[self.item]
        if value is None:
            return MISSING
        return format(value, self.form) if isinstance(self.form, str) else self.form(value)


class Table(NamedTuple):
    """Rows, which are named tuples of plain values, and how they are printed.

    ``drop_order`` has the titles of the columns that a narrow terminal omits, the first one first.
    """

    rows: Sequence[object]
    columns: Sequence[Column]
    caption: str = ""
    drop_order: Sequence[str] = ()


class TextColumn(NamedTuple):
    """A column as text, and the width that it is padded to."""

    title: str
    cells: Sequence[str]
    width: int
    is_number: bool = True

    def lines(self) -> Iterator[str]:
        """Yield the title and the cells, padded."""
        for text in (self.title, *self.cells):
            blank = " " * (self.width - cell_len(text))
            yield blank + text if self.is_number else text + blank


def _render(table: Table) -> Sequence[TextColumn]:
    columns = []
    for column in table.columns:
        title = printable(column.title)
        cells = [printable(column.text_of(row)) for row in table.rows]
        width = max(map(cell_len, (title, *cells)))
        columns.append(TextColumn(title, cells, width, column.is_number))
    return columns


def join_rows(columns: Sequence[TextColumn], gap: int) -> Iterator[str]:
    """Yield the titles and each row as one line."""
    rows = zip(*(column.lines() for column in columns), strict=True)
    return map((" " * gap).join, rows)


def _total_width(columns: Sequence[TextColumn], *, gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def fit_width(
    columns: Sequence[TextColumn], drop_order: Sequence[str], width: int
) -> tuple[Sequence[TextColumn], int]:
    """Omit columns until the rest fits, and return the rest and the gap between two of them."""
    for title in drop_order:
        if _total_width(columns, gap=1) > width:
            columns = [column for column in columns if column.title != title]
    return columns, 2 if _total_width(columns, gap=2) <= width else 1


def fits_terminal(table: Table) -> bool:
    """Return whether all columns fit in the width of the terminal; without one, they do."""
    with _console() as console:
        is_narrow = _total_width(_render(table), gap=1) > console.width
        return not (console.is_terminal and is_narrow)


def print_table(table: Table) -> None:
    """Print a table; on a terminal that is too narrow, words are folded."""
    columns = _render(table)
    with _console() as console:
        if table.caption:
            console.print()
            print_text(console, Text(printable(table.caption), style="dim"))
        if not console.is_terminal:
            print_text(console, "\n".join(row.rstrip() for row in join_rows(columns, 2)))
            return
        columns, gap = fit_width(columns, table.drop_order, console.width)
        grid = RichTable(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
        for column in columns:
            grid.add_column(
                Text(column.title),
                justify="right" if column.is_number else "left",
                overflow="fold",
                no_wrap=column.is_number,
            )
        for cells in zip(*(column.cells for column in columns), strict=True):
            grid.add_row(*map(Text, cells))
        console.print(grid)
