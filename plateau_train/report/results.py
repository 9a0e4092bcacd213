"""What a sweep came to: a table with the best first, also as CSV, and a heat map of two knobs."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plateau_train import config, plots
from plateau_train.config import Resolved, Setting, Settings
from plateau_train.errors import ConfigError, RunError
from plateau_train.report.console import Column, Report
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import History, read_histories
from plateau_train.run.records import MeanStd, best_record

METRICS = (
    "test-accuracy", "test-loss", "val-accuracy", "val-loss", "train-accuracy", "train-loss",
)  # fmt: skip

NONE = "-"

# Columns that a narrow terminal goes without, the first one first.
DROP_ORDER = ("run", "scale", "best")


class Result(NamedTuple):
    """One cell: its values, its run, and its trainings that came to the end."""

    values: tuple[str, ...]
    run: RunDirectory
    histories: Sequence[History]
    num_seeds: int

    def final(self, metric: str) -> MeanStd | None:
        """Return a metric after the last epoch, over the seeds, if there is any."""
        field = metric.replace("-", "_")
        values = [getattr(history.records[-1], field) for history in self.histories]
        return MeanStd.of(values) if values and None not in values else None

    @property
    def best(self) -> MeanStd:
        """The highest accuracy of each training, on what is held out if anything is."""
        return MeanStd.of([best_record(history.records).score for history in self.histories])

    @property
    def num_drops(self) -> MeanStd:
        return MeanStd.of([len(history.drops) for history in self.histories])

    @property
    def scale(self) -> MeanStd:
        return MeanStd.of([history.records[-1].scale for history in self.histories])


def choose_metric(asked: str | None, cells: Sequence[Settings]) -> str:
    """Return the metric to sort by: of what is held out, should all cells hold something out.

    Raises ``ConfigError`` for a word that is none, and for one of images that nobody holds out.
    """
    are_held_out = all(cell.data.val_fraction > 0 for cell in cells)
    if asked is None:
        return "val-accuracy" if are_held_out else "test-accuracy"
    if asked not in METRICS:
        near = config.nearest(asked, METRICS)
        raise ConfigError(
            f"--metric must be one of {', '.join(METRICS)}, got {asked}"
            + (f" (did you mean {near}?)" if near else ""),
            hint="leave it out to take the accuracy",
        )
    if asked.startswith("val") and not are_held_out:
        raise ConfigError(
            f"--metric {asked} needs held-out images in every run", hint="add --val-fraction 0.1"
        )
    return asked


def read_results(
    cells: Sequence[tuple[RunDirectory, Settings]], knobs: Sequence[Setting], report: Report
) -> list[Result]:
    """Read what became of the runs of a sweep, and tell of those that are damaged."""
    return [
        Result(
            tuple(config.as_text(Resolved(settings, {}).value(knob)) for knob in knobs),
            run,
            _finished(run, settings.run.epochs, report),
            len(settings.run.seeds),
        )
        for run, settings in cells
    ]


def _finished(run: RunDirectory, epochs: int, report: Report) -> Sequence[History]:
    """Return the trainings that came to the end of the sweep, and what they had done by then.

    A run that was resumed by itself may have gone further.
    """
    if not run.metrics.exists():
        return ()
    try:
        histories = read_histories(run)
    except RunError as error:
        report.warn(*error.problems)
        return ()
    return [
        history._replace(
            records=history.records[: epochs + 1],
            drops=[drop for drop in history.drops if drop.epoch <= epochs],
        )
        for history in histories
        if history.records[-1].epoch >= epochs
    ]


def show_results(
    folder: RunDirectory,
    found: Sequence[Result],
    knobs: Sequence[Setting],
    metric: str,
    report: Report,
) -> None:
    """Print the results, the best first, and write ``results.csv`` and a heat map."""
    sign = 1 if metric.endswith("loss") else -1

    def rank(result: Result) -> float:
        spread = result.final(metric)
        return math.inf if spread is None else sign * spread.mean

    ordered = sorted(found, key=rank)
    rows = list(_rows(ordered, knobs))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    table = folder.path / "results.csv"
    storage.write_text(table, text.getvalue())
    report.table(list(_columns(ordered, knobs, metric)), drop_order=DROP_ORDER)
    ends = {"results": str(table)}
    if len(knobs) == 2:
        ends["heat map"] = str(_draw(folder, found, knobs, metric))
    best = next((result.run for result in ordered if result.histories), None)
    if best is not None:
        ends["next"] = f"plateau-train plot {best}"
    report.end(ends, folder.path)


def _columns(found: Sequence[Result], knobs: Sequence[Setting], metric: str) -> Iterator[Column]:
    """Lay the results out; the metric is that after the last epoch."""

    def cells(write: Callable[[Result], str]) -> list[str]:
        return [write(result) if result.histories else NONE for result in found]

    for place, knob in enumerate(knobs):
        yield Column(knob.flag, [result.values[place] for result in found])
    yield Column(metric, cells(lambda result: f"{result.final(metric):.4f}"))
    yield Column("best", cells(lambda result: f"{result.best:.4f}"))
    yield Column("drops", cells(lambda result: f"{result.num_drops:.1f}"))
    yield Column("scale", cells(lambda result: f"{result.scale.mean:.4g}"))
    yield Column("seeds", [f"{len(result.histories)}/{result.num_seeds}" for result in found])
    yield Column("run", [result.run.path.name for result in found], is_number=False)


def _rows(found: Sequence[Result], knobs: Sequence[Setting]) -> Iterator[dict[str, str]]:
    """Write each result with mean and deviation of everything, for other programs."""
    has_val = any(history.records[0].val_loss is not None for one in found for history in one[2])
    measures: dict[str, Callable[[Result], MeanStd | None]] = {
        f"final_{metric.replace('-', '_')}": partial(Result.final, metric=metric)
        for metric in METRICS
        if has_val or not metric.startswith("val")
    }
    measures |= {
        "best_accuracy": lambda result: result.best,
        "num_drops": lambda result: result.num_drops,
        "final_scale": lambda result: result.scale,
    }
    for result in found:
        row = dict(zip((knob.key for knob in knobs), result.values, strict=True))
        row |= {"run": result.run.path.name, "seeds": str(result.num_seeds)}
        row |= {"finished": str(len(result.histories))}
        for name, measure in measures.items():
            spread = measure(result) if result.histories else None
            mean, sd, _ = spread or ("", "", 0)
            row |= {f"{name}_mean": str(mean), f"{name}_sd": str(sd)}
        yield row


def _draw(
    folder: RunDirectory, found: Sequence[Result], knobs: Sequence[Setting], metric: str
) -> Path:
    """Draw a heat map, the first knob down and the second across."""
    rows, columns = (
        list(dict.fromkeys(result.values[axis] for result in found)) for axis in (0, 1)
    )
    means, spreads = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
    diverged = np.zeros(means.shape, int)
    for result in found:
        place = rows.index(result.values[0]), columns.index(result.values[1])
        diverged[place] = result.num_seeds - len(result.histories)
        if spread := result.final(metric):
            means[place] = spread.mean
            spreads[place] = spread.sd if spread.num_replicas > 1 else np.nan
    grid = plots.Grid(
        knobs[0].flag, rows, knobs[1].flag, columns, means, spreads, diverged,
        metric.replace("-", " "),
    )  # fmt: skip
    path = folder.path / "heat_map.png"
    heading = f"{grid.metric} after the last epoch, {found[0].num_seeds} seeds"
    plots.save_heat_map(path, grid, heading)
    return path
