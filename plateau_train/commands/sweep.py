"""A grid of settings, each trained with several seeds: plan, train, go on, results.

A sweep is a folder with a plan and a run folder for each cell. Cells that differ in nothing but
what one program can be given as values are trained together; there is a program for each such
group.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from plateau_train import config, plots
from plateau_train.config import SETTINGS, Resolved, Setting, Settings
from plateau_train.data.splits import Dataset
from plateau_train.errors import ConfigError, NonFiniteLossError, RunError, StorageError
from plateau_train.process import signals
from plateau_train.report import results
from plateau_train.report.console import Report, print_table
from plateau_train.report.results import SweepResult
from plateau_train.run import checkpoint, records, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import SWEEP, RunDirectory
from plateau_train.training import setup

# Of a knob in the name of a folder.
LONGEST_NAME = 120


Loaded = dict[config.DataSettings, Dataset]


class Cell(BaseModel):
    """One combination of values: the folder of its run, and its settings."""

    model_config = ConfigDict(frozen=True)

    folder: str
    settings: Settings
    origins: dict[str, str]
    fallback: str  # why its data stand in for others, or empty

    @property
    def resolved(self) -> Resolved:
        return Resolved(self.settings, self.origins)


class Plan(BaseModel):
    """Everything that a sweep is going to do."""

    model_config = ConfigDict(frozen=True)

    varied: tuple[str, ...]  # the keys of the knobs that have several values
    metric: str
    cells: tuple[Cell, ...]

    @property
    def knobs(self) -> list[Setting]:
        return [knob for knob in SETTINGS if knob.key in self.varied]


def start(sweep: config.Sweep, metric: str | None, report: Report) -> None:
    """Train a grid in a new folder and show its results.

    All that can be refused is refused before the folder is made: settings, data, devices. A cell
    whose trainings all diverge is told and does not end the others; raises ``NonFiniteLossError``
    where none is left.
    """
    cells = [setup.settle(cell) for cell in sweep.cells]
    metric = results.choose_metric(metric, [cell.settings for cell in cells])
    setup.pin_threads(cells[0])
    loaded: Loaded = {}
    plan = Plan(
        varied=tuple(knob.key for knob in sweep.varied),
        metric=metric,
        cells=_check(cells, sweep.varied, loaded, report),
    )
    run = cells[0].settings.run
    name = run.name or "sweep"
    if any(cell.fallback for cell in plan.cells):
        name += f"-{plan.cells[0].settings.data.dataset}"
    folder = RunDirectory.create(run.runs_dir.expanduser(), name)
    with folder.locked():
        try:
            storage.write_text(folder.path / SWEEP, plan.model_dump_json(indent=1) + "\n")
        except StorageError:
            folder.discard()
            raise
        settings = {cell.folder: cell.resolved for cell in plan.cells}
        _train(folder, plan, settings, loaded, report)


def _check(
    resolved: Sequence[Resolved], varied: Sequence[Setting], loaded: Loaded, report: Report
) -> tuple[Cell, ...]:
    """Return the cells with the data that were found; refuse data, devices and too many of them."""
    from plateau_train.training import loop  # only now, when the number of threads is fixed

    cells = []
    programs: dict[Settings, list[Settings]] = {}
    for number, cell in enumerate(resolved, start=1):
        dataset = _load(cell.settings.data, loaded, report)
        loop.enable_compilation_cache(cell.settings.data.cache_dir)
        named = setup.name_dataset(cell, dataset)
        programs.setdefault(_program_of(named), []).append(named.settings)
        loop.plan_replicas(dataset, programs[_program_of(named)])
        cells.append(
            Cell(
                folder=_name_cell(number, named, varied),
                settings=named.settings,
                origins=named.origins,
                fallback=dataset.fallback,
            )
        )
    return tuple(cells)


def is_sweep(path: Path) -> bool:
    """Tell a sweep from a run, or from what is neither."""
    with contextlib.suppress(OSError):
        return (path / SWEEP).is_file()
    return False


def resume(path: Path, asked: Resolved, report: Report) -> None:
    """Go on with a sweep where it was stopped, and show its results."""
    folder, plan = RunDirectory.find(path), read_plan(path)
    with folder.locked():
        setup.pin_threads(plan.cells[0].resolved)
        settings = {cell.folder: _continued(folder, cell, asked) for cell in plan.cells}
        _train(folder, plan, settings, {}, report)


def check(path: Path, asked: Resolved) -> Iterator[str]:
    """Verify every run of a sweep that has begun; see ``setup.check``."""
    for cell in read_plan(path).cells:
        if RunDirectory(path / cell.folder).config.exists():
            yield from setup.check(path / cell.folder, asked)


def read_plan(path: Path) -> Plan:
    """Read what a sweep is going to do; raises ``RunError`` where that is damaged."""
    try:
        return Plan.model_validate_json((path / SWEEP).read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(
            f"{path / SWEEP} cannot be used: {str(error).splitlines()[0]}",
            hint="restore the file from a copy, or begin the sweep anew",
        ) from error


def _name_cell(number: int, resolved: Resolved, varied: Sequence[Setting]) -> str:
    """Name the folder of a cell by its place in the grid and by what it varies."""
    values = {knob.key: config.as_text(resolved.value(knob)) for knob in varied}
    words = ",".join(f"{key}={value.replace(',', 'x')}" for key, value in values.items())
    return f"{number:03}-{words}"[:LONGEST_NAME].replace("/", "-").rstrip("-")


def _continued(folder: RunDirectory, cell: Cell, asked: Resolved) -> Resolved:
    """Return the settings of a cell with what is of this machine, and not of its beginning.

    Raises ``ConfigError`` where anything else is asked for that is another value there.
    """
    resolved = cell.resolved
    for knob in SETTINGS:
        value, is_explicit = asked.value(knob), asked.is_explicit(knob.key)
        if knob.key in ("cache_dir", "devices") or (
            is_explicit and knob.key in ("data_dir", "quiet")
        ):
            resolved = resolved.replace(knob.key, value, asked.origins[knob.key])
        elif is_explicit and value != resolved.value(knob):
            raise ConfigError(
                f"{knob.flag} {config.as_text(value)} cannot be given to {folder.path}: a sweep "
                "goes on with the settings that it began with",
                hint="leave it out; one run of it can go on by itself, with more --epochs",
            )
    return resolved


def _train(
    folder: RunDirectory, plan: Plan, settings: dict[str, Resolved], loaded: Loaded, report: Report
) -> None:
    """Train all cells that are not done, group by group, and show the results."""
    signals.hint = f"plateau-train resume {folder} continues it"
    groups = _group(folder, plan, settings, report)
    seeds = config.as_text(plan.cells[0].settings.run.replica_seeds)
    report.header(
        {
            "sweep": f"{_describe(plan)}, each with --seeds {seeds}",
            "programs": f"{len(groups)} to train, one after the other",
            "folder": str(folder.path),
        }
    )
    for number, units in enumerate(groups, start=1):
        names = ", ".join(unit.run.path.name for unit in units)
        report.say(f"program {number} of {len(groups)}: {names}")
        try:
            _train_group(units, loaded, report)
        except NonFiniteLossError as error:
            report.warn(f"All trainings of {names} diverged; the last: {error.problems[0]}")
        except StorageError as error:
            error.hint = f"make room or give access, then {signals.hint}"
            raise
    found = results.read_results(
        [(RunDirectory(folder.path / cell.folder), cell.settings) for cell in plan.cells],
        plan.knobs,
    )
    if not any(result.num_finished for result in found):
        raise NonFiniteLossError(
            f"all trainings of {folder} diverged",
            hint="train with smaller --learning-rate values",
        )
    _show_results(folder, found, plan, report)


def _show_results(
    folder: RunDirectory, found: Sequence[SweepResult], plan: Plan, report: Report
) -> None:
    """Print the results, the best first, and write ``results.csv`` and a heat map."""
    ordered = results.sort_results(found, plan.metric)
    table, picture = folder.path / "results.csv", folder.path / "heat_map.png"
    storage.write_text(table, results.to_csv(ordered, plan.knobs))
    if not report.is_quiet:
        print_table(results.make_table(ordered, plan.knobs, plan.metric))
    ends = {"results": str(table)}
    if len(plan.knobs) == 2:
        grid = plots.Grid(**results.grid_arguments(found, plan.knobs, plan.metric))
        heading = f"{grid.metric} after the last epoch, {found[0].num_seeds} seeds"
        plots.save_heat_map(picture, grid, heading)
        ends["heat map"] = str(picture)
    ends["next"] = f"plateau-train plot {RunDirectory(folder.path / ordered[0].run)}"
    report.end(ends, folder.path)


def _describe(plan: Plan) -> str:
    """Say what there is to train."""
    values = {
        knob: dict.fromkeys(config.as_text(cell.resolved.value(knob)) for cell in plan.cells)
        for knob in plan.knobs
    }
    grid = " x ".join(f"{knob.flag} {' '.join(texts)}" for knob, texts in values.items())
    return f"{len(plan.cells)} runs, {grid}" if grid else "1 run"


class Unit(NamedTuple):
    """A cell that is to be trained, and the checkpoint that it goes on from."""

    run: RunDirectory
    resolved: Resolved
    found: Checkpoint | None
    fallback: str


def _group(
    folder: RunDirectory, plan: Plan, settings: dict[str, Resolved], report: Report
) -> list[list[Unit]]:
    """Put cells together that one program can train from one epoch on.

    A crash may have come when some cells of a group had written an epoch and others had not: those
    go back to the epoch that all have.
    """
    programs: dict[Settings, list[Unit]] = {}
    for cell in plan.cells:
        run, resolved = RunDirectory(folder.path / cell.folder), settings[cell.folder]
        if run.summary.exists() or _is_lost(run, resolved):
            continue
        if _goes_further(run, resolved):
            report.warn(
                f"{run} was given more epochs than the sweep has: it is left as it is, and "
                f"plateau-train resume {run} goes on with it."
            )
            continue
        found, reasons = checkpoint.read_newest(run.checkpoints)
        if run.config.exists():
            setup.refuse_a_lost_run(run, found, reasons)
        unit = Unit(run, resolved, found, cell.fallback)
        programs.setdefault(_program_of(resolved), []).append(unit)
    groups: dict[tuple[Settings, int], list[Unit]] = {}
    for program, units in programs.items():
        first = min(_epoch_of(unit.found) for unit in units)
        for unit in units:
            unit = unit._replace(found=_back_to(first, unit.run, unit.found))
            groups.setdefault((program, _epoch_of(unit.found)), []).append(unit)
    return list(groups.values())


def _goes_further(run: RunDirectory, resolved: Resolved) -> bool:
    """Tell whether a run has been resumed by itself, with more epochs than the sweep has."""
    with contextlib.suppress(RunError):
        if run.config.exists():
            return run.settings().settings.run.epochs > resolved.settings.run.epochs
    return False


def _is_lost(run: RunDirectory, resolved: Resolved) -> bool:
    """Tell whether all trainings of a run have diverged: they would do so again."""
    notices = records.read_notices(run.events)
    lost = {notice.replica for notice in notices if notice.event == "diverged"}
    return len(lost) == len(resolved.settings.run.replica_seeds)


def _program_of(resolved: Resolved) -> Settings:
    """Return the settings without what one program is given as values."""
    from plateau_train.numerics.replicas import Replicas

    for key in {*Replicas._fields} - {"seed"}:
        resolved = resolved.replace(key, None, "the replica's own")
    return resolved.settings


def _epoch_of(found: Checkpoint | None) -> int:
    return -1 if found is None else found.manifest.epoch


def _back_to(epoch: int, run: RunDirectory, found: Checkpoint | None) -> Checkpoint | None:
    """Return the checkpoint of an earlier epoch, where it is kept and sound."""
    if found is None or found.manifest.epoch == epoch:
        return found
    if epoch < 0:
        return None
    with contextlib.suppress(RunError):
        return checkpoint.read_checkpoint(checkpoint.epoch_path(run.checkpoints, epoch))
    return found


def _load(settings: config.DataSettings, loaded: Loaded, report: Report) -> Dataset:
    """Load data unless they are those that were loaded last."""
    if settings not in loaded:
        dataset, _ = setup.load(settings, report)
        loaded.clear()
        # By the name that it has from now on, it is the same.
        loaded[settings] = loaded[settings.model_copy(update={"dataset": dataset.name})] = dataset
    return loaded[settings]


def _train_group(units: Sequence[Unit], loaded: Loaded, report: Report) -> None:
    """Train some cells together, in their folders."""
    from plateau_train.training import loop

    first = units[0]
    dataset = replace(_load(first.resolved.settings.data, loaded, report), fallback=first.fallback)
    facts = setup.describe_data(dataset)
    for unit in units:  # what cannot be gone on with is refused before anything is written
        if unit.found is not None:
            before = unit.found.manifest.environment.dataset
            setup.refuse_other_data(unit.run, before, facts, dataset)
            loop.restore(unit.found)
    with contextlib.ExitStack() as held:
        places = []
        for run, resolved, found, _ in units:
            storage.make_folder(run.path)
            held.enter_context(run.locked())
            setup.write_settings(run, resolved)
            places.append(loop.Place(run, resolved, found))
        loop.fit(places, dataset, facts, report, in_sweep=True)
