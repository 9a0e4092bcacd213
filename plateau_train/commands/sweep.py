"""Train every combination of some settings, each with all seeds, and show the results."""

import contextlib
import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plateau_train import config, plots
from plateau_train.config import Resolved, Setting, Settings
from plateau_train.errors import PROGRAM, ConfigError, NonFiniteLossError, RunError
from plateau_train.report import console
from plateau_train.report.console import MISSING, Column, Table, look_up
from plateau_train.report.progress import ProgramReport
from plateau_train.run import environment, storage
from plateau_train.run.directory import SWEEP, RunDirectory, read_json
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd
from plateau_train.run.results import Results
from plateau_train.training import setup, sweep
from plateau_train.training.devices import start_devices
from plateau_train.training.sweep import METRICS, LoadedDatasets, SweepPlan, SweepRun

log = logging.getLogger("plateau_train")


def _path_of(metric: str) -> str:
    """Return the path of a metric after the last epoch in a ``SweepResult``."""
    return f"results.final.{metric}".replace("-", ".")


_AVERAGED = {f"final_{metric}".replace("-", "_"): _path_of(metric) for metric in METRICS} | {
    "best_accuracy": "results.own_best_score",
    "num_drops": "num_drops",
}

# The measures of ``results.csv``, and their paths in a ``SweepResult``.
MEASURES = {
    f"{name}_{statistic}": f"{path}.{statistic}"
    for name, path in _AVERAGED.items()
    for statistic in ("mean", "sd")
} | {
    f"final_scale_{statistic}": f"results.final_scale.{statistic}"
    for statistic in ("geometric_mean", "min", "max")
}


class SweepResult(NamedTuple):
    """A run of a sweep."""

    name: str  # of its folder
    settings: Settings
    values: Mapping[str, str | None]  # of the settings that vary; None where it has no effect
    results: Results | None  # of the seeds that finished all epochs; None if there are none

    @property
    def num_seeds(self) -> int:
        return len(self.settings.run.seeds)

    @property
    def num_drops(self) -> MeanStd | None:
        return self.results and self.results.drops_of(self.settings)

    @property
    def num_finished(self) -> int:
        return 0 if self.results is None else len(self.results.seeds)

    def final(self, metric: str) -> MeanStd | None:
        """Return one of ``METRICS`` after the last epoch."""
        return look_up(self, _path_of(metric))

    def rank(self, metric: str) -> float:
        """Return a number that is lower for a better run, and infinite without a finished seed."""
        final, sign = self.final(metric), 1 if metric.endswith("loss") else -1
        return math.inf if final is None else sign * final.mean


def start(cells: config.Sweep, metric: str | None) -> None:
    """Train a grid in a new folder.

    Everything that can be refused is refused before the folder is made: settings, data, devices.
    Raises ``NonFiniteLossError`` where every replica of every run diverged.
    """
    console.configure_logging(is_quiet=cells.cells[0].settings.run.quiet)
    metric = choose_metric(metric, [cell.settings for cell in cells.cells])
    start_devices(setup.localize(cells.cells[0]).settings.run.threads)
    environment.allow_open_files(len(cells.cells))
    datasets = LoadedDatasets()
    with console.busy("loading the data"):
        plan = sweep.make_plan(cells, metric, datasets)
    with contextlib.ExitStack() as stack:
        directory = sweep.create_sweep(plan, stack)
        _train(directory, plan, datasets)


def resume(path: Path, overrides: Resolved) -> None:
    """Continue a sweep where it was stopped."""
    console.configure_logging(is_quiet=overrides.settings.run.quiet)
    directory, plan = RunDirectory.find(path), read_json(path / SWEEP, SweepPlan)
    with directory.locked():
        start_devices(plan.runs[0].settings.run.threads)
        environment.allow_open_files(len(plan.runs))
        _train(directory, sweep.merge_settings(plan, overrides, directory), LoadedDatasets())


def check(path: Path, overrides: Resolved) -> None:
    """Verify every run of a sweep, and print what is intact; raises as ``setup.check``."""

    def print_check(_: SweepRun, run: RunDirectory) -> None:
        is_begun = sweep.has_begun(run)
        for line in setup.check(run, overrides) if is_begun else [f"{run}: not started"]:
            print(console.printable(line))

    sweep.visit_runs(RunDirectory(path), read_json(path / SWEEP, SweepPlan), print_check)


def _train(directory: RunDirectory, plan: SweepPlan, datasets: LoadedDatasets) -> None:
    settings = plan.runs[0].settings.run
    programs, newest = sweep.group_programs(directory, plan)
    seeds = config.as_text(settings.seed)
    if not settings.quiet:
        console.print_rows(
            {
                "sweep": f"{plan.describe()}, each with --seed {seeds}",
                "programs": f"{len(programs)} to train, one after the other",
                "folder": str(directory.path),
            },
            to_stderr=True,
        )
    report = ProgramReport(is_quiet=settings.quiet)
    sweep.train_sweep(
        directory, plan, programs, newest, datasets, report, save_plot=plots.save_run_plot
    )
    _show_results(directory, plan)


def choose_metric(metric: str | None, runs: Sequence[Settings]) -> str:
    """Return the metric to sort by; the default is the accuracy on the validation or test images.

    Raises ``ConfigError`` for an unknown metric, and for one that not all runs have.
    """
    available = sweep.available_metrics(runs)
    if metric is None:
        return "val-accuracy" if "val-accuracy" in available else "test-accuracy"
    if metric not in METRICS:
        raise ConfigError(
            f"--metric must be one of {', '.join(METRICS)}, got {metric}"
            f"{config.did_you_mean(metric, METRICS)}",
            hint="leave it out to sort by accuracy",
        )
    if metric not in available:
        raise ConfigError(
            f"--metric {metric} needs held-out images in every run", hint="add --val-fraction 0.1"
        )
    return metric


def _show_results(directory: RunDirectory, plan: SweepPlan) -> None:
    """Print the results, the best first, and write ``results.csv`` and a heat map."""
    varied, is_quiet = plan.varied_settings, plan.runs[0].settings.run.quiet
    results = [read_result(directory.path, run, varied) for run in plan.runs]
    if not any(result.num_finished for result in results):
        raise NonFiniteLossError(
            f"all seeds of {directory} diverged", hint="train with smaller --learning-rate values"
        )
    ordered = sorted(results, key=lambda result: result.rank(plan.metric))
    table, picture = directory.path / "results.csv", directory.path / "heat_map.png"
    storage.write_text(table, to_csv(ordered))
    rows = {"results": str(table)}
    if len(varied) == 2:
        grid = _make_grid(results, varied, plan.metric)
        num_seeds = results[0].num_seeds
        seeds = f"mean and standard deviation of {num_seeds} seeds" if num_seeds > 1 else "one seed"
        heading = f"{grid.metric} after the last epoch, {seeds}"
        plots.save(picture, plots.draw_heat_map(grid, heading))
        rows["heat map"] = str(picture)
    rows["next"] = f"{PROGRAM} plot {RunDirectory(directory.path / ordered[0].name)}"
    if is_quiet:
        print(console.printable(directory.path))
        return
    columns = [
        *(Column(f"values.{setting.key}", setting.flag) for setting in varied),
        Column(_path_of(plan.metric), plan.metric, ".4f"),
        Column("results.own_best_score", "best", ".4f", omit=3),
        Column("num_drops", "drops"),
        Column("results.final_scale.geometric_mean", "scale", ".4g", omit=2),
        Column(lambda result: f"{result.num_finished}/{result.num_seeds}", "seeds"),
        Column("name", "run", is_number=False, omit=1),
    ]
    console.print_table(Table(ordered, columns))
    console.print_rows(rows)


def read_result(folder: Path, planned: SweepRun, varied: Sequence[Setting]) -> SweepResult:
    """Read a run of a sweep; warn if it is damaged. A run that was resumed may have more epochs."""
    run, settings = Run(RunDirectory(folder / planned.folder)), planned.settings
    finished, num_epochs = [], settings.run.epochs
    try:
        finished = [
            history.until(num_epochs)
            for history in (run.histories if run.directory.metrics.exists() else ())
            if history.last_epoch >= num_epochs or (history.ending and history.ending.is_complete)
        ]
    except RunError as error:
        log.warning("\n".join(error.problems))
    values = {
        each.key: config.as_text(each.value_in(settings)) if each.matters_in(settings) else None
        for each in varied
    }
    results = Results.of(finished) if finished else None
    return SweepResult(planned.folder, settings, values, results)


def to_csv(results: Sequence[SweepResult]) -> str:
    """Return a line for each run with every measure that one of the runs has."""
    rows = []
    for result in results:
        row = {**result.values, "run": result.name}
        row |= {"seeds": result.num_seeds, "finished": result.num_finished}
        for name, path in MEASURES.items():
            if any(look_up(each, path) is not None for each in results):
                row[name] = look_up(result, path)  # None is an empty cell
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _make_grid(
    results: Sequence[SweepResult], varied: Sequence[Setting], metric: str
) -> plots.Grid:
    """Arrange a metric over the two settings that vary."""
    rows, columns = (
        list(dict.fromkeys(result.values[setting.key] or MISSING for result in results))
        for setting in varied
    )
    means, stds = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
    num_diverged = np.zeros(means.shape, int)
    for result in results:
        row, column = (value or MISSING for value in result.values.values())
        cell = rows.index(row), columns.index(column)
        num_diverged[cell] = result.num_seeds - result.num_finished
        if final := result.final(metric):
            means[cell] = final.mean
            stds[cell] = final.sd if final.num_replicas > 1 else np.nan
    flags, name = [setting.flag for setting in varied], metric.replace("-", " ")
    return plots.Grid(flags[0], rows, flags[1], columns, means, stds, num_diverged, name)
