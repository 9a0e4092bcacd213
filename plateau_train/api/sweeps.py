"""Train every combination of some settings, each with all seeds, and read the results."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plateau_train import config, plots
from plateau_train.api.options import PathLike, for_python
from plateau_train.api.pictures import draw_into
from plateau_train.api.runs import Run
from plateau_train.config import FIXED_PANELS_OPTIONS, FigureOptions, Resolved, Setting, Settings
from plateau_train.errors import ConfigError, NonFiniteLossError, RunError
from plateau_train.process import clock
from plateau_train.process.jax_session import own_configuration
from plateau_train.report.console import MISSING, Column, Table, look_up
from plateau_train.report.notebook import make_report
from plateau_train.report.rows import Columns, Row, to_columns, to_csv, to_html
from plateau_train.run import storage
from plateau_train.run.directory import SWEEP, RunDirectory, is_sweep, read_json
from plateau_train.run.environment import require_open_files
from plateau_train.run.history import History
from plateau_train.run.reader import Run as StoredRun
from plateau_train.run.records import MeanStd
from plateau_train.run.results import ReplicaResult, Results
from plateau_train.training import sweep
from plateau_train.training.devices import use_process
from plateau_train.training.loop import Callbacks
from plateau_train.training.sweep import METRICS, LoadedDatasets, SweepPlan, SweepRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("plateau_train")

Announce = Callable[[Mapping[str, str]], None]  # of what is about to be trained
Prepare = Callable[[int | None, int], None]  # the devices, for a number of threads and of runs


def _short_value(setting: Setting, result: "SweepResult") -> str | None:
    """Return the value of a setting in a run for a table; None where it has no effect."""
    return result.values[setting.key] and setting.short_text(result.settings)


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
    histories: Sequence[History]  # of the seeds that have finished epoch 0
    results: Results | None  # of those that finished all epochs; None if there are none

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


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """The results of a sweep, the best run first."""

    path: Path  # the folder
    metric: str  # that the runs are sorted by
    varied: Sequence[Setting]
    ranked: Sequence[SweepResult]

    @property
    def runs(self) -> list[Run]:
        """The runs, the best first."""
        return [Run.at(self.path / each.name) for each in self.ranked]

    def rows(self) -> list[Row]:
        """Return a row for each seed of each run, also for those that diverged."""
        return [
            {"run": each.name, "folder": str(self.path / each.name)}
            | {setting.key: setting.effective_value(each.settings) for setting in self.varied}
            | ReplicaResult.of(history, each.settings)._asdict()
            for each in self.ranked
            for history in each.histories
        ]

    @property
    def results(self) -> Columns:
        """What each seed of each run achieved, as columns, the best run first."""
        return to_columns(self.rows())

    @for_python()
    def resume(self, *, max_time: str | float | None = None, quiet: bool = False) -> "Sweep":
        """Train what is left of a sweep that was stopped, and return the results of all runs.

        Without ``max_time`` the limit stays as it is; "none" removes it.
        """
        clock.start()
        given = {"max_time": max_time, "quiet": quiet}
        overrides = config.resolve(config.read_arguments(given))
        report = make_report(is_quiet=quiet, is_sweep=True)
        with own_configuration():
            return resume(self.path, overrides, _prepare, report, lambda _: None)

    def as_table(self) -> Table:
        """Return a row for each run."""
        columns = [
            *(Column(partial(_short_value, setting), setting.flag) for setting in self.varied),
            Column(_path_of(self.metric), self.metric, ".4f"),
            Column("results.own_best_score", "best", ".4f", omit=3),
            Column("num_drops", "drops"),
            Column("results.final_scale.geometric_mean", "scale", ".4g", omit=2),
            Column(lambda result: f"{result.num_finished}/{result.num_seeds}", "seeds"),
            Column("name", "run", is_number=False, omit=1),
        ]
        return Table(self.ranked, columns)

    @for_python(FIXED_PANELS_OPTIONS)
    def plot(self, *, path: PathLike | None = None, **options: Any) -> "Figure":
        """Draw the metric over the two settings that vary; also save it to ``path`` if given.

        Raises ``ConfigError`` for a sweep over more or fewer settings, and ``RunError`` where no
        seed has finished.
        """
        return draw_into(path, self._draw, options, FIXED_PANELS_OPTIONS)

    def _draw(self, options: FigureOptions) -> "Figure":
        if len(self.varied) != 2:
            raise ConfigError(
                f"a heat map needs two settings that vary, and {self.path} has {len(self.varied)}",
                hint="compare draws the curves of any runs",
            )
        if not any(result.num_finished for result in self.ranked):
            raise RunError(
                f"no seed of {self.path} has finished", hint="resume trains what is left"
            )
        grid, num_seeds = _make_grid(self), self.ranked[0].num_seeds
        seeds = f"mean and standard deviation of {num_seeds} seeds" if num_seeds > 1 else "one seed"
        heading = f"{grid.metric} after the last epoch, {seeds}"
        return plots.draw_heat_map(grid, heading, options)

    def __repr__(self) -> str:
        varied = ", ".join(setting.key for setting in self.varied)
        return f"Sweep({str(self.path)!r}, {len(self.ranked)} runs over {varied})"

    def _repr_html_(self) -> str:
        return to_html(self.as_table())


def _prepare(_: int | None, num_runs: int) -> None:
    use_process()
    require_open_files(num_runs)


def start(
    cells: config.Sweep, metric: str | None, callbacks: Callbacks, announce: Announce
) -> Sweep:
    """Train a grid in a new folder, and save its results there.

    Everything that can be refused is refused before the folder is made: settings, data, devices.
    A sweep that ``--max-time`` stops has no results there. Raises ``NonFiniteLossError`` where
    every replica of every run diverged.
    """
    # Before the data are loaded, which decide.
    may_have_val = all(cell.settings.data.may_have_val for cell in cells.cells)
    sweep.choose_metric(metric, has_val=may_have_val)
    datasets = LoadedDatasets()
    with callbacks.loading() as progress:
        plan = sweep.make_plan(cells, metric, datasets, progress)
    with contextlib.ExitStack() as stack:
        directory = sweep.create_sweep(plan, stack)
        return _train(directory, plan, datasets, callbacks, announce)


def resume(
    path: Path, overrides: Resolved, prepare: Prepare, callbacks: Callbacks, announce: Announce
) -> Sweep:
    """Continue a sweep where it was stopped."""
    directory, plan = RunDirectory.find(path), read_json(path / SWEEP, SweepPlan)
    with directory.locked():
        prepare(plan.runs[0].settings.run.threads, len(plan.runs))
        plan = sweep.merge_settings(plan, overrides, directory)
        return _train(directory, plan, LoadedDatasets(), callbacks, announce)


def read(path: Path) -> Sweep:
    """Read the results of a sweep; raises ``RunError`` for another folder."""
    directory = RunDirectory.find(path)
    if not is_sweep(directory.path):
        raise RunError(f"{path} is not a sweep: it has no {SWEEP}", hint="load opens a run")
    return _read(directory, read_json(path / SWEEP, SweepPlan))


def _train(
    directory: RunDirectory,
    plan: SweepPlan,
    datasets: LoadedDatasets,
    callbacks: Callbacks,
    announce: Announce,
) -> Sweep:
    programs, newest = sweep.group_programs(directory, plan)
    announce(
        {
            "sweep": f"{plan.describe()}, each with --seed {plan.runs[0].settings.run.seed}",
            "programs": f"{len(programs)} to train, one after the other",
            "folder": str(directory.path),
        }
    )
    is_done = sweep.train_sweep(
        directory, plan, programs, newest, datasets, callbacks, save_plot=plots.save_run_plot
    )
    results = _read(directory, plan)
    if not is_done:
        return results
    if not any(result.num_finished for result in results.ranked):
        raise NonFiniteLossError(
            f"all seeds of {directory} diverged", hint="train with smaller --learning-rate values"
        )
    storage.write_text(table_path(directory.path), to_csv(_mean_rows(results.ranked)))
    if len(results.varied) == 2:
        plots.save(picture_path(directory.path), results.plot())
    return results


def table_path(folder: Path) -> Path:
    """Return the path of the means over the seeds of each run."""
    return folder / "results.csv"


def picture_path(folder: Path) -> Path:
    """Return the path of the heat map, which a sweep over two settings has."""
    return folder / "heat_map.png"


def _read(directory: RunDirectory, plan: SweepPlan) -> Sweep:
    varied = plan.varied_settings
    results = [_read_result(directory.path, run, varied) for run in plan.runs]
    ordered = sorted(results, key=lambda result: result.rank(plan.metric))
    return Sweep(directory.path, plan.metric, varied, ordered)


def _read_result(folder: Path, planned: SweepRun, varied: Sequence[Setting]) -> SweepResult:
    """Read a run of a sweep; warn if it is damaged. A run that was resumed may have more epochs."""
    run, settings = StoredRun(RunDirectory(folder / planned.folder)), planned.settings
    histories, num_epochs = [], settings.run.epochs
    try:
        if run.directory.metrics.exists() and run.records:
            histories = run.histories
    except RunError as error:
        log.warning("\n".join(error.problems))
    values = {
        each.key: config.as_text(each.value_in(settings)) if each.matters_in(settings) else None
        for each in varied
    }
    finished = [
        history.until(num_epochs)
        for history in histories
        if history.last_epoch >= num_epochs or (history.ending and history.ending.is_complete)
    ]
    results = Results.of(finished) if finished else None
    shown = [history.until(num_epochs) for history in histories]
    return SweepResult(planned.folder, settings, values, shown, results)


def _mean_rows(results: Sequence[SweepResult]) -> list[Row]:
    """Return a row for each run with every measure that one of the runs has."""
    rows = []
    for result in results:
        row = {**result.values, "run": result.name}
        row |= {"seeds": result.num_seeds, "finished": result.num_finished}
        for name, path in MEASURES.items():
            if any(look_up(each, path) is not None for each in results):
                row[name] = look_up(result, path)
        rows.append(row)
    return rows


def _make_grid(sweep: Sweep) -> plots.Grid:
    """Arrange a metric over the two settings that vary."""
    results, varied = sorted(sweep.ranked, key=attrgetter("name")), sweep.varied
    rows, columns = (
        list(dict.fromkeys(result.values[setting.key] or MISSING for result in results))
        for setting in varied
    )
    means, stds = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
    num_diverged = np.zeros(means.shape, int)
    for result in results:
        row, column = (value or MISSING for value in result.values.values())
        cell = rows.index(row), columns.index(column)
        num_diverged[cell] = sum(history.has_diverged for history in result.histories)
        if final := result.final(sweep.metric):
            means[cell] = final.mean
            stds[cell] = final.sd if final.num_replicas > 1 else np.nan
    flags, name = [setting.flag for setting in varied], sweep.metric.replace("-", " ")
    rows, columns = _shorten(rows), _shorten(columns)
    return plots.Grid(flags[0], rows, flags[1], columns, means, stds, num_diverged, name)


def _shorten(texts: Sequence[str]) -> list[str]:
    """Return the last parts of paths if these differ, and other texts as they are."""
    names = [text.rpartition("/")[2] if text.startswith("/") else text for text in texts]
    return names if len(set(names)) == len(names) else list(texts)
