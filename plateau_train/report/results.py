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
from plateau_train.report.console import Column, Table
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import History
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd, best_record

log = logging.getLogger("plateau_train")

METRICS = tuple(
    f"{split}-{kind}" for split in ("test", "val", "train") for kind in ("accuracy", "loss")
)

MEASURES = ("best_accuracy", "num_drops", "final_scale")

# Columns that a narrow terminal omits.
DROP_ORDER = ("run", "scale", "best")


class SweepResult(NamedTuple):
    """A run of a sweep, over its seeds that finished all epochs; None if there are none."""

    run: str  # the name of its folder
    values: tuple[str, ...]  # of the settings that vary
    num_seeds: int
    num_finished: int
    finals: Mapping[str, MeanStd | None]  # of each metric, after the last epoch
    best_accuracy: MeanStd | None  # on the validation images if there are any, else the test images
    num_drops: MeanStd | None
    final_scale: MeanStd | None

    @property
    def share_finished(self) -> str:
        return f"{self.num_finished}/{self.num_seeds}"


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
        values = (config.as_text(Resolved(settings, {}).value(setting)) for setting in varied)
        histories = _read_finished(directory, settings.run.epochs)
        results.append(_summarize(directory.path.name, tuple(values), settings, histories))
    return results


def sort_results(results: Sequence[SweepResult], metric: str) -> list[SweepResult]:
    """Return the results with the best first, and at the end those without a finished seed."""
    sign = 1 if metric.endswith("loss") else -1

    def rank(result: SweepResult) -> float:
        final = result.finals[metric]
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


def _summarize(
    name: str, values: tuple[str, ...], settings: Settings, histories: Sequence[History]
) -> SweepResult:
    """Compute means and standard deviations over seeds."""
    last = [history.records[-1] for history in histories]
    finals = {}
    for metric in METRICS:
        scores = [getattr(record, metric.replace("-", "_")) for record in last]
        finals[metric] = None if None in scores else _mean(scores)
    return SweepResult(
        run=name,
        values=values,
        num_seeds=len(settings.run.seeds),
        num_finished=len(histories),
        finals=finals,
        best_accuracy=_mean([best_record(history.records).score for history in histories]),
        num_drops=_mean([len(history.drops) for history in histories]),
        final_scale=_mean([record.scale for record in last]),
    )


def _mean(values: Sequence[float]) -> MeanStd | None:
    return MeanStd.of(values) if values else None


def make_table(results: Sequence[SweepResult], varied: Sequence[Setting], metric: str) -> Table:
    """Return the table of a sweep."""
    columns = [
        *(Column("values", setting.flag, item=i) for i, setting in enumerate(varied)),
        Column("finals", metric, ".4f", item=metric),
        Column("best_accuracy", "best", ".4f"),
        Column("num_drops", "drops", ".1f"),
        Column("final_scale", "scale", lambda scale: f"{scale.mean:.4g}"),
        Column("share_finished", "seeds"),
        Column("run", "run", is_number=False),
    ]
    return Table(results, columns, drop_order=DROP_ORDER)


def to_csv(results: Sequence[SweepResult], varied: Sequence[Setting]) -> str:
    """Return a line for each run with the mean and the standard deviation of every metric."""
    metrics = [name for name in METRICS if any(result.finals[name] for result in results)]
    rows = []
    for result in results:
        row = dict(zip((setting.key for setting in varied), result.values, strict=True))
        row |= {"run": result.run, "seeds": result.num_seeds, "finished": result.num_finished}
        means = {f"final_{name.replace('-', '_')}": result.finals[name] for name in metrics}
        means |= {name: getattr(result, name) for name in MEASURES}
        for name, value in means.items():
            mean, std, _ = value or ("", "", 0)
            row |= {f"{name}_mean": mean, f"{name}_sd": std}
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
