"""The results of a sweep, as rows of a table, as CSV, and as the grid of a heat map."""

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from plateau_train import config
from plateau_train.config import Resolved, Setting, Settings
from plateau_train.errors import ConfigError, RunError
from plateau_train.report.console import Column, Table, look_up
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import History
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd
from plateau_train.run.results import Results

log = logging.getLogger("plateau_train")


def _path_of(metric: str) -> str:
    return f"results.final.{metric}".replace("-", ".")


METRICS = tuple(
    f"{split}-{kind}" for split in ("test", "val", "train") for kind in ("accuracy", "loss")
)

# Where a sweep's results have what ``results.csv`` has the mean and the standard deviation of.
MEASURES = {f"final_{metric}".replace("-", "_"): _path_of(metric) for metric in METRICS} | {
    "best_accuracy": "results.own_best_score",
    "num_drops": "results.num_drops",
    "final_scale": "results.final_scale",
}

# Columns that a narrow terminal omits.
DROP_ORDER = ("run", "scale", "best")


class SweepResult(NamedTuple):
    """A run of a sweep."""

    name: str  # of its folder
    values: Mapping[str, str]  # of the settings that vary, by key
    num_seeds: int
    results: Results | None  # of the seeds that finished all epochs; None if there are none

    @property
    def num_finished(self) -> int:
        return 0 if self.results is None else len(self.results.seeds)

    @property
    def share_finished(self) -> str:
        return f"{self.num_finished}/{self.num_seeds}"

    def final(self, metric: str) -> MeanStd | None:
        """Return one of ``METRICS`` after the last epoch."""
        return look_up(self, _path_of(metric))


def choose_metric(metric: str | None, runs: Sequence[Settings]) -> str:
    """Return the metric to sort by; the default is the accuracy on the validation or test images.

    Raises ``ConfigError`` for an unknown metric, and for one that not all runs have.
    """
    has_val = all(settings.data.val_fraction > 0 for settings in runs)
    if metric is None:
        return "val-accuracy" if has_val else "test-accuracy"
    if metric not in METRICS:
        raise ConfigError(
            f"--metric must be one of {', '.join(METRICS)}, got {metric}"
            f"{config.did_you_mean(metric, METRICS)}",
            hint="leave it out to take the accuracy",
        )
    if metric.startswith("val") and not has_val:
        raise ConfigError(
            f"--metric {metric} needs held-out images in every run", hint="add --val-fraction 0.1"
        )
    return metric


def read_results(
    runs: Sequence[tuple[RunDirectory, Settings]], varied: Sequence[Setting]
) -> list[SweepResult]:
    """Read the runs of a sweep, in their order, and warn of those that are damaged."""
    results = []
    for directory, settings in runs:
        resolved = Resolved(settings, {})
        values = {setting.key: config.as_text(resolved.value(setting)) for setting in varied}
        finished = _read_finished(directory, settings.run.epochs)
        achieved = Results.of(finished) if finished else None
        name, num_seeds = directory.path.name, len(settings.run.seeds)
        results.append(SweepResult(name, values, num_seeds, achieved))
    return results


def sort_results(results: Sequence[SweepResult], metric: str) -> list[SweepResult]:
    """Return the results with the best first, and at the end those without a finished seed."""
    sign = 1 if metric.endswith("loss") else -1

    def rank(result: SweepResult) -> float:
        final = result.final(metric)
        return math.inf if final is None else sign * final.mean

    return sorted(results, key=rank)


def _read_finished(directory: RunDirectory, num_epochs: int) -> list[History]:
    """Return the replicas that finished all epochs; a run that was resumed may have more."""
    if not directory.metrics.exists():
        return []
    try:
        return [
            history.until(num_epochs)
            for history in Run(directory).histories
            if history.last_epoch >= num_epochs or (history.ending and history.ending.is_complete)
        ]
    except RunError as error:
        log.warning("\n".join(error.problems))
        return []


def make_table(results: Sequence[SweepResult], varied: Sequence[Setting], metric: str) -> Table:
    """Return the table of a sweep."""
    columns = [
        *(Column(f"values.{setting.key}", setting.flag) for setting in varied),
        Column(_path_of(metric), metric, ".4f"),
        Column("results.own_best_score", "best", ".4f"),
        Column("results.num_drops", "drops", ".1f"),
        Column("results.final_scale.mean", "scale", ".4g"),
        Column("share_finished", "seeds"),
        Column("name", "run", is_number=False),
    ]
    return Table(results, columns, drop_order=DROP_ORDER)


def to_csv(results: Sequence[SweepResult]) -> str:
    """Return a line for each run with the mean and the standard deviation of every measure."""
    rows = []
    for result in results:
        row = {**result.values, "run": result.name}
        row |= {"seeds": result.num_seeds, "finished": result.num_finished}
        for name, path in MEASURES.items():
            if any(look_up(each, path) for each in results):
                mean, std, _ = look_up(result, path) or ("", "", 0)
                row |= {f"{name}_mean": mean, f"{name}_sd": std}
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
