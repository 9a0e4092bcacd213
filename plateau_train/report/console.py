"""Terminal output: log messages, errors, tables, and the progress of a training run.

Results go to stdout, everything else goes to stderr. On a terminal, text is wrapped and styled;
elsewhere each row is one plain line, flushed.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich import progress as bars
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from plateau_train.errors import ChangedSettingsError, InterruptedRunError, PlateauTrainError

MISSING = "-"  # the text for a value of None in a table

Update = Callable[[int, int], object]  # of a bar, with how much is done, and of how much

UNLIMITED = 1_000_000  # characters of a line that is not on a terminal


def printable(text: object) -> str:
    """Escape the characters that could control the terminal, line breaks included."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def make_console(*, to_stderr: bool = False, is_plain: bool = False) -> Console:
    """Return a console that breaks lines on a terminal, unless it is plain, and nowhere else."""
    terminal = False if is_plain else None  # where None, Rich finds out
    console = Console(
        stderr=to_stderr, highlight=False, force_terminal=terminal, force_jupyter=False
    )
    if not console.is_terminal:
        console.width = UNLIMITED
    return console


@contextlib.contextmanager
def _console(*, to_stderr: bool = False) -> Iterator[Console]:
    """Yield a console, and write what was printed on it when the block ends.

    It is written with ``print`` because a progress bar replaces ``sys.stdout`` and ``sys.stderr``
    by files that write above the bar; a ``Console`` bypasses them.
    """
    console = make_console(to_stderr=to_stderr)
    with console.capture() as capture:
        yield console
    text = capture.get()
    if not console.is_terminal:  # Rich fills the last column of a table with spaces
        text = "\n".join(map(str.rstrip, text.split("\n")))
    print(text, end="", file=sys.stderr if to_stderr else sys.stdout, flush=True)


@contextlib.contextmanager
def busy(text: str) -> Iterator[Update | None]:
    """Show a spinner on a terminal while the block runs; messages appear above it.

    Yields a function that turns it into a bar, or None where nothing is shown.
    """
    console = make_console(to_stderr=True)
    # A kernel sets FORCE_COLOR, with which Rich takes any file for a terminal.
    is_terminal = console.is_terminal and sys.stderr.isatty()
    if not is_terminal:
        yield None
        return
    spinner = bars.SpinnerColumn(), bars.TextColumn("{task.description}")
    bar = bars.BarColumn(bar_width=30), bars.MofNCompleteColumn()
    with bars.Progress(*spinner, console=console, transient=True) as progress:
        task = progress.add_task(text, total=None)

        def update(num_done: int, num_images: int) -> None:
            progress.columns = (*spinner, *bar, bars.TimeRemainingColumn(compact=True))
            progress.update(task, completed=num_done, total=num_images)

        yield update


class _LogHandler(logging.Handler):
    """Print log messages to stderr: each line of a warning as a notice, others dimmed."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        with _console(to_stderr=True) as console:
            if record.levelno < logging.WARNING:
                console.print(Text(printable(message), style="dim"))
                return
            prefix = "" if console.is_terminal else "NOTICE: "
            text = Text("\n".join(prefix + printable(line) for line in message.split("\n")))
            panel = Panel(text, title="NOTICE", style="bold yellow", expand=False)
            console.print(panel if console.is_terminal else text)


def configure_logging(*, is_quiet: bool = False) -> None:
    """Print what the package logs, on stderr; if quiet, only warnings.

    A second call replaces the handler of the first.
    """
    log = logging.getLogger("plateau_train")
    log.setLevel(logging.INFO)
    log.propagate = False  # other libraries configure the root logger
    log.handlers = [each for each in log.handlers if not isinstance(each, _LogHandler)]
    log.addHandler(_LogHandler(logging.WARNING if is_quiet else logging.INFO))


def print_error(error: PlateauTrainError) -> None:
    """Print each problem on a line, and then the hints, on stderr. A signal is no error."""
    label = "" if isinstance(error, InterruptedRunError) else "error: "
    with _console(to_stderr=True) as console:
        for problem in error.problems:
            console.print(Text.assemble((label, "bold red"), printable(problem)))
        if isinstance(error, ChangedSettingsError):
            grid = RichTable.grid(padding=(0, 2, 0, 0))
            for row in error.table:
                grid.add_row("", *(Text(printable(cell)) for cell in row))
            console.print(grid)
    print_hints(error.hint)


def print_hints(hints: str) -> None:
    """Print hints on stderr, a line each."""
    with _console(to_stderr=True) as console:
        for hint in hints.split("\n"):
            console.print(Text.assemble(("hint: ", "bold cyan"), printable(hint)))


def print_stop(message: str, hints: str) -> None:
    """Print how far a training got that was stopped on purpose, and hints, on stderr."""
    with _console(to_stderr=True) as console:
        console.print(Text(printable(message)))
    print_hints(hints)


def print_rows(rows: Mapping[str, str], *, to_stderr: bool = False) -> None:
    """Print names and their texts, on a terminal with a hanging indent."""
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=8, style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows.items():
        grid.add_row(Text(name), Text(printable(text)))
    with _console(to_stderr=to_stderr) as console:
        console.print(grid)


def print_text(text: str) -> None:
    """Print lines as they are, without their control characters."""
    for line in text.rstrip().split("\n"):
        print(printable(line.rstrip()))


def look_up(row: Any, path: str) -> Any:
    """Follow the names of fields and keys, joined by dots; return None where one leads to None."""
    for name in path.split("."):
        if row is not None:
            row = row.get(name) if isinstance(row, Mapping) else getattr(row, name)
    return row


class Column(NamedTuple):
    """A column of a table: where its values are in the rows, its title, and its format.

    ``source`` is a path for ``look_up`` or a function of a row. ``form`` is a format specification,
    or a function of the value. Numbers are aligned to the right, words to the left.
    A narrow terminal omits the columns with the lowest ``omit`` first, and never those with 0.
    """

    source: str | Callable[[Any], Any]
    title: str
    form: str | Callable[[Any], object] = ""
    is_number: bool = True
    omit: int = 0
    min_width: int = 0

    def text_of(self, row: Any) -> str:
        """Return the text of a row in this column."""
        value = self.source(row) if callable(self.source) else look_up(row, self.source)
        if value is None:
            return MISSING
        return format(value, self.form) if isinstance(self.form, str) else str(self.form(value))


class Table(NamedTuple):
    """Rows, which are named tuples of plain values, and how they are printed."""

    rows: Sequence[object]
    columns: Sequence[Column]
    caption: str = ""


class _TextColumn(NamedTuple):
    """A column, the text of each row in it, and its width in characters."""

    column: Column
    cells: Sequence[str]
    width: int


def _render(table: Table) -> list[_TextColumn]:
    columns = []
    for column in table.columns:
        cells = [printable(column.text_of(row)) for row in table.rows]
        width = max(column.min_width, *map(cell_len, (printable(column.title), *cells)))
        columns.append(_TextColumn(column, cells, width))
    return columns


def _total_width(columns: Sequence[_TextColumn], *, gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


class Layout(NamedTuple):
    """A table that fits in a width, and a line that names the columns that did not."""

    grid: RichTable
    omitted: Text


def lay_out(table: Table, width: int) -> Layout:
    """Lay out a table; omit columns until the rest fits in a width. Words may be folded."""
    columns = _render(table)
    for omit in sorted({column.omit for column in table.columns} - {0}):
        if _total_width(columns, gap=1) > width:
            columns = [each for each in columns if each.column.omit != omit]
    gap = 2 if _total_width(columns, gap=2) <= width else 1
    grid = RichTable.grid(padding=(0, gap, 0, 0))
    grid.show_header = True
    for column, _, min_width in columns:
        grid.add_column(
            Text(printable(column.title)),
            min_width=min_width if column.is_number else None,
            justify="right" if column.is_number else "left",
            overflow="fold",
            no_wrap=column.is_number,
        )
    for cells in zip(*(each.cells for each in columns), strict=True):
        grid.add_row(*map(Text, cells))
    shown = [each.column.title for each in columns]
    # A title may stand above several columns, such as the accuracy of each split.
    titles = dict.fromkeys(each.title for each in table.columns if each.title not in shown)
    line = f"not shown at this width: {printable(', '.join(titles))}" if titles else ""
    return Layout(grid, Text(line, style="dim"))


def fits_terminal(table: Table) -> bool:
    """Return whether all columns fit in the width of the terminal; without one, they do."""
    return _total_width(_render(table), gap=1) <= make_console().width


def print_table(table: Table) -> None:
    """Print a table, after its caption and before the names of the columns that were omitted."""
    with _console() as console:
        if table.caption:
            console.print()
            console.print(Text(printable(table.caption), style="dim"))
        grid, omitted = lay_out(table, console.width)
        console.print(grid)
        if omitted:
            console.print(omitted)


def in_epochs(epochs: float) -> str:
    """Write a number of epochs with two digits."""
    shown = f"{epochs:.2g}" if epochs < 10 else f"{epochs:,.0f}"
    return f"{shown} epoch{'' if shown == '1' else 's'}"
