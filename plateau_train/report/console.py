"""Terminal output: log messages, errors, tables, and the progress of a training run.

Results go to stdout, everything else goes to stderr. On a terminal, text is wrapped and styled;
elsewhere each row is one plain line, flushed.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from plateau_train.errors import ChangedSettingsError, PlateauTrainError
from plateau_train.run.records import Drop, EpochRecord, mean_scores

MISSING = "-"  # the text for a value of None in a table
STD = "\N{PLUS-MINUS SIGN}"  # the title of a standard deviation, to the right of its mean

# Columns of the epoch table that a narrow terminal omits, in this order: others imply them.
DROP_ORDER = ("time", "lr", "lowest", "acc", "to beat", "scale")


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


def _print(console: Console, text: Text | str) -> None:
    """Print text, wrapped on a terminal; elsewhere there is no width to wrap to."""
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


class _LogHandler(logging.Handler):
    """Print log messages to stderr: each line of a warning as a notice, others dimmed."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        with _console(to_stderr=True) as console:
            if record.levelno < logging.WARNING:
                _print(console, Text(printable(message), style="dim"))
                return
            lines = [printable(line) for line in message.split("\n")]
            if console.is_terminal:
                text = Text("\n".join(lines))
                console.print(Panel(text, title="NOTICE", style="bold yellow", expand=False))
            else:
                for line in lines:
                    _print(console, f"NOTICE: {line}")


def configure_logging(*, is_quiet: bool = False) -> None:
    """Print what the package logs, on stderr; if quiet, only warnings.

    A second call replaces the handler of the first.
    """
    logger = logging.getLogger("plateau_train")
    logger.setLevel(logging.INFO)
    for handler in [each for each in logger.handlers if isinstance(each, _LogHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_LogHandler(logging.WARNING if is_quiet else logging.INFO))


def print_error(error: PlateauTrainError) -> None:
    """Print each problem on a line, and then the hint, on stderr."""
    with _console(to_stderr=True) as console:
        for problem in error.problems:
            _print(console, Text.assemble(("error: ", "bold red"), printable(problem)))
        if isinstance(error, ChangedSettingsError):
            grid = RichTable.grid(padding=(0, 2, 0, 0))
            for row in error.table:
                grid.add_row("", *(Text(printable(cell)) for cell in row))
            if not console.is_terminal:
                console.width = 1000  # one row stays one line
            console.print(grid)
        _print(console, Text.assemble(("hint: ", "bold cyan"), printable(error.hint)))


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
                _print(console, f"{name:<8}  {printable(text)}")


class Column(NamedTuple):
    """A column of a table: which field of the rows it shows, its title, and its format.

    ``form`` is a format specification, or a function from the value to its text. ``item`` is the
    index or key of the value if the field is a tuple or a mapping. Numbers are aligned to the
    right, words to the left.
    """

    field: str
    title: str
    form: str | Callable[[Any], str] = ""
    is_number: bool = True
    item: int | str | None = None

    def text_of(self, row: object) -> str:
        """Return the text of a row in this column."""
        value = getattr(row, self.field)
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


class _TextColumn(NamedTuple):
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


def _render(table: Table) -> Sequence[_TextColumn]:
    columns = []
    for column in table.columns:
        title = printable(column.title)
        cells = [printable(column.text_of(row)) for row in table.rows]
        width = max(map(cell_len, (title, *cells)))
        columns.append(_TextColumn(title, cells, width, column.is_number))
    return columns


def _total_width(columns: Sequence[_TextColumn], *, gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _fit_width(
    columns: Sequence[_TextColumn], drop_order: Sequence[str], width: int
) -> tuple[Sequence[_TextColumn], int]:
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
            _print(console, Text(printable(table.caption), style="dim"))
        if not console.is_terminal:
            rows = zip(*(column.lines() for column in columns), strict=True)
            _print(console, "\n".join("  ".join(row).rstrip() for row in rows))
            return
        columns, gap = _fit_width(columns, table.drop_order, console.width)
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


class TrainingReport:
    """Print the progress of a training run: header, progress bar, epochs, drops, end."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.is_quiet = is_quiet
        self._console = Console(highlight=False)
        self._progress: Progress | None = None
        self._titles = ""

    def header(self, rows: Mapping[str, str]) -> None:
        """Print what is about to be trained."""
        if not self.is_quiet:
            print_rows(rows, to_stderr=True)

    def start_epoch(self, epoch: int, num_epochs: int, num_steps: int, part: str = "") -> None:
        """Start the progress bar of an epoch; ``part`` says which group of replicas it is for."""
        if self.is_quiet or not self._console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                # Not up to the edge, where the terminal's echo of Ctrl-C would break the line.
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # a log file is not above the bar
            )
            self._progress.add_task("", loss="")
            self._progress.start()
        self._progress.reset(
            self._progress.task_ids[0],
            total=num_steps if epoch > 0 else None,
            description=f"epoch {epoch}/{num_epochs}{part}",
            loss="" if epoch > 0 else "compiling, scoring the untrained network",
        )

    def step(self, step: int, loss: float) -> None:
        """Move the progress bar to a step of the epoch."""
        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0], completed=step, loss=f"loss {loss:.4f}"
            )

    def epoch(
        self,
        records: Sequence[EpochRecord],
        drops: Iterable[Drop],
        *,
        num_replicas: int,
        num_epochs: int,
        patience: int | None,
        seconds: float,
    ) -> None:
        """Print the metrics of an epoch, and each drop in it.

        ``records`` has the replicas that are finite, ``num_replicas`` counts all of them; of
        several, means and standard deviations are printed. ``patience`` is None if the plateau
        rule does not set the scale, and then its state is not printed.
        """
        if self.is_quiet:
            return
        console = self._console
        if num_replicas > 1:
            patience = None
        if not console.is_terminal:
            _print(console, _epoch_line(records, num_epochs, patience))
        else:
            columns = _epoch_columns(records, num_replicas, num_epochs, patience)
            columns.append(_TextColumn("time", [f"{seconds:.1f}s"], 5))
            columns, gap = _fit_width(columns, DROP_ORDER, console.width)
            lines = zip(*(column.lines() for column in columns), strict=True)
            titles, row = map((" " * gap).join, lines)
            if titles != self._titles:
                self._titles = titles
                console.print(Text(titles, style="bold"), no_wrap=True, crop=True)
            console.print(Text(row), no_wrap=True, crop=True)
        for drop in drops:
            replica = f"replica {drop.replica}: " if num_replicas > 1 else ""
            text = Text(f"{replica}{drop.describe()}", style="bold yellow")
            if console.is_terminal:
                console.print(Padding(text, (0, 0, 0, 6)))
            else:
                _print(console, text)

    def end(self, rows: Mapping[str, str], path: Path) -> None:
        """Print how the run ended and what to do next; if quiet, only the path of its folder."""
        self.close()
        if self.is_quiet:
            print(path, flush=True)
        else:
            print_rows(rows)

    def close(self) -> None:
        """Remove the progress bar from the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _epoch_line(records: Sequence[EpochRecord], num_epochs: int, patience: int | None) -> str:
    """Return an epoch as one plain line."""
    first = records[0]
    parts = [f"epoch {first.epoch}/{num_epochs}"]
    parts += [f"{name} loss {loss:.4f} acc {acc:.4f}" for name, loss, acc in mean_scores(records)]
    parts.append(f"scale {_range([record.scale for record in records])}")
    parts.append(f"lr {_range([record.learning_rate for record in records])}")
    if patience is not None:
        to_beat = "" if first.to_beat is None else f", to beat {first.to_beat:.4f}"
        cooldown = f", cooldown {first.cooldown}" if first.cooldown else ""
        parts.append(f"wait {first.wait}/{patience}{to_beat}{cooldown}")
    return "  ".join(parts)


def _range(values: Sequence[float]) -> str:
    """Return the lowest and the highest value as text, or the only one."""
    return " to ".join(f"{value:.6g}" for value in dict.fromkeys((min(values), max(values))))


def _epoch_columns(
    records: Sequence[EpochRecord], num_replicas: int, num_epochs: int, patience: int | None
) -> list[_TextColumn]:
    """Return an epoch as the row of a table that fits 80 columns without validation.

    The widths do not depend on the values: all epochs are printed under the same titles.
    """
    first, scales = records[0], [record.scale for record in records]
    cells = [("epoch", max(5, len(f"{num_epochs}") * 2 + 1), f"{first.epoch}/{num_epochs}")]
    for split, loss, accuracy in mean_scores(records):
        for title, value in ((f"{split} loss", loss), ("acc", accuracy)):
            cells.append((title, max(6, len(title)), f"{value.mean:.4f}"))
            if num_replicas > 1:
                cells.append((STD, 6, f"{value.sd:.4f}"))
    cells.append(("scale", 10, f"{max(scales):.6g}"))
    if num_replicas > 1:
        cells.append(("lowest", 10, f"{min(scales):.6g}"))
    else:
        cells.append(("lr", 9, f"{first.learning_rate:.4g}"))
    if patience is not None:
        wait = f"cd {first.cooldown}" if first.cooldown else f"{first.wait}/{patience}"
        cells.append(("wait", len(f"{patience}") * 2 + 2, wait))
        cells.append(("to beat", 7, "" if first.to_beat is None else f"{first.to_beat:.4f}"))
    return [_TextColumn(title, [text], width) for title, width, text in cells]


# What is left of the old interface, for the callers that are still to change.
show_error = print_error


class Report(TrainingReport):
    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(is_quiet=quiet)
        configure_logging(is_quiet=quiet)

    def say(self, message: str) -> None:
        logging.getLogger("plateau_train").info("%s", message)

    def warn(self, *lines: str) -> None:
        logging.getLogger("plateau_train").warning("%s", "\n".join(map(printable, lines)))

    def rows(self, rows: Mapping[str, str]) -> None:
        print_rows(rows)

    def table(self, columns: Sequence["OldColumn"], *, drop_order: Sequence[str] = ()) -> None:
        rows = [_OldRow(row) for row in zip(*(column.cells for column in columns), strict=True)]
        shown = [Column("cells", old.title, item=i) for i, old in enumerate(columns)]
        print_table(Table(rows, shown, drop_order=drop_order))


class OldColumn(NamedTuple):
    title: str
    cells: Sequence[str]


class _OldRow(NamedTuple):
    cells: Sequence[str]
