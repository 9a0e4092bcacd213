"""Train every combination of some settings, each with all seeds, and show the results."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plateau_train import config, plots
from plateau_train.config import Resolved, Setting
from plateau_train.errors import NonFiniteLossError
from plateau_train.report import console, results
from plateau_train.report.progress import ProgramReport
from plateau_train.report.results import SweepResult
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.training import setup, sweep
from plateau_train.training.sweep import LoadedDatasets, SweepPlan


def start(cells: config.Sweep, metric: str | None) -> None:
    """Train a grid in a new folder.

    Everything that can be refused is refused before the folder is made: settings, data, devices.
    Raises ``NonFiniteLossError`` where every replica of every run diverged.
    """
    console.configure_logging(is_quiet=cells.cells[0].settings.run.quiet)
    metric = results.choose_metric(metric, [cell.settings for cell in cells.cells])
    setup.pin_threads(setup.localize(cells.cells[0]))
    datasets = LoadedDatasets()
    plan = sweep.make_plan(cells, metric, datasets)
    with contextlib.ExitStack() as stack:
        directory = sweep.create_sweep(plan, stack)
        _train(directory, plan, datasets)


def resume(path: Path, overrides: Resolved) -> None:
    """Continue a sweep where it was stopped."""
    console.configure_logging(is_quiet=overrides.settings.run.quiet)
    directory, plan = RunDirectory.find(path), sweep.read_plan(path)
    with directory.locked():
        setup.pin_threads(plan.runs[0].resolved)
        _train(directory, sweep.merge_settings(plan, overrides, directory), LoadedDatasets())


def check(path: Path, overrides: Resolved) -> None:
    """Verify every run of a sweep that has begun, and print what is sound."""
    for run in sweep.read_plan(path).runs:
        directory = RunDirectory(path / run.folder)
        if directory.config.exists():
            for line in setup.check(directory, overrides):
                print(line)


def _train(directory: RunDirectory, plan: SweepPlan, datasets: LoadedDatasets) -> None:
    settings = plan.runs[0].settings.run
    programs = sweep.group_programs(directory, plan)
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
    fallbacks = {run.folder: run.fallback for run in plan.runs}
    report = ProgramReport(is_quiet=settings.quiet)
    sweep.train_sweep(directory, programs, datasets, fallbacks, report, plots.save_run_plot)
    _show_results(directory, plan)


def _show_results(directory: RunDirectory, plan: SweepPlan) -> None:
    """Print the results, the best first, and write ``results.csv`` and a heat map."""
    varied, is_quiet = plan.varied_settings, plan.runs[0].settings.run.quiet
    runs = [(RunDirectory(directory.path / run.folder), run.settings) for run in plan.runs]
    all_results = results.read_results(runs, varied)
    if not any(result.num_finished for result in all_results):
        raise NonFiniteLossError(
            f"all seeds of {directory} diverged", hint="train with smaller --learning-rate values"
        )
    ordered = results.sort_results(all_results, plan.metric)
    table, picture = directory.path / "results.csv", directory.path / "heat_map.png"
    storage.write_text(table, results.to_csv(ordered))
    rows = {"results": str(table)}
    if len(varied) == 2:
        grid = _make_grid(all_results, varied, plan.metric)
        heading = f"{grid.metric} after the last epoch, {all_results[0].num_seeds} seeds"
        plots.save_heat_map(picture, grid, heading)
        rows["heat map"] = str(picture)
    rows["next"] = f"plateau-train plot {RunDirectory(directory.path / ordered[0].name)}"
    if is_quiet:
        print(directory.path)
        return
    console.print_table(results.make_table(ordered, varied, plan.metric))
    console.print_rows(rows)


def _make_grid(
    all_results: Sequence[SweepResult], varied: Sequence[Setting], metric: str
) -> plots.Grid:
    """Arrange a metric over the two settings that vary."""
    rows, columns = (
        list(dict.fromkeys(result.values[setting.key] for result in all_results))
        for setting in varied
    )
    means, stds = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
    num_diverged = np.zeros(means.shape, int)
    for result in all_results:
        row, column = result.values.values()
        cell = rows.index(row), columns.index(column)
        num_diverged[cell] = result.num_seeds - result.num_finished
        if final := result.final(metric):
            means[cell] = final.mean
            stds[cell] = final.sd if final.num_replicas > 1 else np.nan
    flags, name = [setting.flag for setting in varied], metric.replace("-", " ")
    return plots.Grid(flags[0], rows, flags[1], columns, means, stds, num_diverged, name)
