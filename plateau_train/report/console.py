"""What a user sees: of a run header, live bar, a row an epoch, drops, the end; of others tables.

Rows, drops and the end go to stdout, which is what was asked for; everything else goes to stderr.
On a terminal the rows are a table under a live bar; elsewhere each is one plain line, flushed.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from plateau_train.errors import ChangedSettingsError, PlateauTrainError
from plateau_train.run.records import Drop, EpochRecord, mean_scores


def printable(text: object) -> str:
    """Write foreign text so that it cannot steer the terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def show_error(error: PlateauTrainError) -> None:
    """Print what is wrong, a line each, and the way out."""
    console = Console(stderr=True, highlight=False)
    for problem in error.problems:
        _print(console, Text.assemble(("error: ", "bold red"), printable(problem)))
    if isinstance(error, ChangedSettingsError):
        grid = Table.grid(padding=(0, 2, 0, 0))
        for row in error.table:
            grid.add_row("", *(Text(printable(cell)) for cell in row))
        if not console.is_terminal:
            console.width = 1000  # here, too, one line stays one line
        console.print(grid)
    _print(console, Text.assemble(("hint: ", "bold cyan"), printable(error.hint)))


def _print(console: Console, text: Text | str) -> None:
    # Without a terminal there is no width to wrap to: one line stays one line.
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def _print_rows(console: Console, rows: Mapping[str, str]) -> None:
    """Print names and what they stand for, on a terminal with a hanging indent."""
    for name, text in rows.items():
        if console.is_terminal:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(width=8, style="bold")
            grid.add_column(overflow="fold")
            grid.add_row(name, Text(printable(text)))
            console.print(grid)
        else:
            _print(console, f"{name:<8}  {printable(text)}")


class _Cell(NamedTuple):
    title: str
    width: int
    text: str


class Column(NamedTuple):
    """A column of a table: numbers stand to the right, words to the left."""

    title: str
    cells: Sequence[str]
    is_number: bool = True

    @property
    def width(self) -> int:
        return max(cell_len(text) for text in (self.title, *self.cells))

    def lines(self) -> Iterable[str]:
        """Yield its title and its cells, each as wide as the widest."""
        width = self.width
        for text in (self.title, *self.cells):
            blank = " " * (width - cell_len(text))
            yield blank + text if self.is_number else text + blank


# Columns that a narrow terminal goes without, the first one first: what follows from others.
DROP_ORDER = ("time", "lr", "lowest", "acc", "to beat", "scale")

SD = "\N{PLUS-MINUS SIGN}"  # the title of a deviation, behind the mean that it belongs to


def configure_logging(*, is_quiet: bool = False) -> None:
    """Print what the library logs to standard error."""
    handler = logging.Handler(logging.WARNING if is_quiet else logging.INFO)
    console = Console(stderr=True, highlight=False)
    handler.emit = lambda record: _print(console, Text(printable(record.getMessage()), "dim"))
    log = logging.getLogger("plateau_train")
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [handler], False  # tensorflow-datasets configures the root logger


class Report:
    """Tell the story of one run, on a terminal or line by line."""

    def __init__(self, *, quiet: bool = False) -> None:
        configure_logging(is_quiet=quiet)
        self._quiet = quiet
        self._out = Console(highlight=False)
        self._talk = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._titles = ""

    def say(self, message: str) -> None:
        """Tell what is being done."""
        if not self._quiet:
            _print(self._talk, Text(printable(message), style="dim"))

    def warn(self, *lines: str) -> None:
        """Tell what nobody should miss, also where the run is otherwise quiet."""
        text = Text("\n".join(map(printable, lines)))
        if self._talk.is_terminal:
            self._talk.print(Panel(text, title="NOTICE", style="bold yellow", expand=False))
        else:
            for line in text.plain.splitlines():
                _print(self._talk, f"NOTICE: {line}")

    def header(self, rows: Mapping[str, str]) -> None:
        """Tell what is about to be trained."""
        if not self._quiet:
            _print_rows(self._talk, rows)

    def start_epoch(self, epoch: int, num_epochs: int, num_steps: int, part: str = "") -> None:
        """Begin the live bar of an epoch, or of that part of it which one group trains."""
        if self._quiet or not self._out.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                # Short of the edge, where the terminal's echo of Ctrl-C would break the line.
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(compact=True),
                console=self._out,
                transient=True,
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
        """Move the live bar on to a step of the epoch."""
        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0], completed=step, loss=f"loss {loss:.4f}"
            )

    def epoch(
        self, records: Sequence[EpochRecord], drops: Iterable[Drop], *, num_epochs: int,
        patience: int | None, num_trainings: int, seconds: float,
    ) -> None:  # fmt: skip
        """Tell an epoch's metrics, of several replicas mean and deviation, and each drop in it.

        Without ``patience`` the rule does not act, and what it waits for is not told.
        """
        if self._quiet:
            return
        if not self._out.is_terminal:
            _print(self._out, _line(records, num_epochs, patience if num_trainings == 1 else None))
        else:
            cells = _cells(records, num_epochs, patience, num_trainings, seconds)
            cells = _fitting(cells, DROP_ORDER, self._out.width)
            gap = "  " if _width(cells, gap=2) <= self._out.width else " "
            titles = gap.join(f"{cell.title:>{cell.width}}" for cell in cells)
            if titles != self._titles:
                self._titles = titles
                self._out.print(Text(titles, style="bold"), no_wrap=True, crop=True)
            row = gap.join(f"{cell.text:>{cell.width}}" for cell in cells)
            self._out.print(Text(row), no_wrap=True, crop=True)
        for drop in drops:
            which = f"replica {drop.replica}: " if num_trainings > 1 else ""
            text = Text(f"{which}{drop.describe()}", style="bold yellow")
            indent = 6 if self._out.is_terminal else 0
            self._out.print(
                Padding(text, (0, 0, 0, indent)) if indent else text, soft_wrap=not indent
            )

    def end(self, rows: Mapping[str, str], run: Path) -> None:
        """Tell how it ended and what to do next; a quiet run prints its folder here."""
        self.close()
        if self._quiet:
            print(run, flush=True)
            return
        _print_rows(self._out, rows)

    def rows(self, rows: Mapping[str, str]) -> None:
        """Print names and what they stand for."""
        _print_rows(self._out, rows)

    def fits(self, columns: Sequence[Column]) -> bool:
        """Tell whether a table can be printed with all of its columns."""
        return not self._out.is_terminal or _width(columns, gap=1) <= self._out.width

    def table(
        self, columns: Sequence[Column], *, caption: str = "", drop_order: Sequence[str] = ()
    ) -> None:
        """Print a table, which a narrow terminal gets without the drop_order, the first one first.

        Where that is not enough, words are folded. Without a terminal each row is one plain line.
        """
        if self._quiet:
            return
        columns = [
            column._replace(cells=[printable(cell) for cell in column.cells]) for column in columns
        ]
        if caption:
            self._out.print()
            _print(self._out, Text(caption, style="dim"))
        if not self._out.is_terminal:
            rows = zip(*(column.lines() for column in columns), strict=True)
            _print(self._out, "\n".join("  ".join(row).rstrip() for row in rows))
            return
        columns = _fitting(columns, drop_order, self._out.width)
        gap = 2 if _width(columns, gap=2) <= self._out.width else 1
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(
                Text(column.title),
                justify="right" if column.is_number else "left",
                overflow="fold",
                no_wrap=column.is_number,
            )
        for row in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*map(Text, row))
        self._out.print(table)

    def close(self) -> None:
        """Take the live bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _line(records: Sequence[EpochRecord], num_epochs: int, patience: int | None) -> str:
    """Write an epoch as one plain line."""
    first = records[0]
    parts = [f"epoch {first.epoch}/{num_epochs}"]
    parts += [f"{name} loss {loss:.4f} acc {acc:.4f}" for name, loss, acc in mean_scores(records)]
    parts.append(f"scale {_range([record.scale for record in records], '.6g')}")
    parts.append(f"lr {_range([record.learning_rate for record in records], '.6g')}")
    if patience is not None:
        to_beat = "" if first.to_beat is None else f", to beat {first.to_beat:.4f}"
        cooldown = f", cooldown {first.cooldown}" if first.cooldown else ""
        parts.append(f"wait {first.wait}/{patience}{to_beat}{cooldown}")
    return "  ".join(parts)


def _range(values: Sequence[float], form: str) -> str:
    """Write the lowest and the highest of some values, or the one that all of them are."""
    ends = dict.fromkeys((min(values), max(values)))
    return " to ".join(f"{value:{form}}" for value in ends)


ColumnType = TypeVar("ColumnType", _Cell, Column)


def _width(columns: Sequence[_Cell | Column], *, gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _fitting(
    columns: Sequence[ColumnType], drop_order: Sequence[str], width: int
) -> Sequence[ColumnType]:
    """Leave out as many of the drop_order, in their order, as it takes to fit into a width."""
    for title in drop_order:
        if _width(columns, gap=1) > width:
            columns = [column for column in columns if column.title != title]
    return columns


def _cells(
    records: Sequence[EpochRecord],
    num_epochs: int,
    patience: int | None,
    num_trainings: int,
    seconds: float,
) -> Sequence[_Cell]:
    """Lay an epoch out as a row of a table that fits 80 columns without validation."""
    first, are_several = records[0], num_trainings > 1
    cells = [_Cell("epoch", len(f"{num_epochs}") * 2 + 1, f"{first.epoch}/{num_epochs}")]
    for name, loss, accuracy in mean_scores(records):
        cells.append(_Cell(f"{name} loss", len(name) + 5, f"{loss.mean:.4f}"))
        if are_several:
            cells.append(_Cell(SD, 6, f"{loss.sd:.4f}"))
        cells.append(_Cell("acc", 6, f"{accuracy.mean:.4f}"))
        if are_several:
            cells.append(_Cell(SD, 6, f"{accuracy.sd:.4f}"))
    scales = [record.scale for record in records]
    cells.append(_Cell("scale", 10, f"{max(scales):.6g}"))
    if are_several:
        cells.append(_Cell("lowest", 10, f"{min(scales):.6g}"))
    else:
        cells.append(_Cell("lr", 9, f"{first.learning_rate:.4g}"))
    if not are_several and patience is not None:
        waits = f"{first.wait}/{patience}" if not first.cooldown else f"cd {first.cooldown}"
        cells += [
            _Cell("wait", len(f"{patience}") * 2 + 2, waits),
            _Cell("to beat", 7, "" if first.to_beat is None else f"{first.to_beat:.4f}"),
        ]
    return [*cells, _Cell("time", 5, f"{seconds:.1f}s")]
