"""A grid of settings, each with all seeds: the plan, and its training in few programs.

A sweep is a folder with a plan and a run folder for each combination. Runs that differ only in
traced settings are trained together in one program.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plateau_train import config
from plateau_train.config import SETTINGS, Resolved, Setting, Settings
from plateau_train.config.settings import OnResume
from plateau_train.data.splits import Dataset, Progress
from plateau_train.errors import (
    PROGRAM,
    BusyRunError,
    ConfigError,
    ForeignRunError,
    NonFiniteLossError,
    PictureError,
    RunError,
)
from plateau_train.numerics.model import Network
from plateau_train.numerics.spec import Spec
from plateau_train.process import signals
from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import SWEEP, RunDirectory
from plateau_train.run.journal import RunTask
from plateau_train.run.reader import Run, is_over
from plateau_train.run.records import Ending
from plateau_train.training import setup
from plateau_train.training.loop import Callbacks, SavePlot, fit
from plateau_train.training.program import Program
from plateau_train.training.time_limit import TimeLimit

log = logging.getLogger("plateau_train")

T = TypeVar("T")

LONGEST_NAME = 120  # of the folder of a run

_NOTHING: Any = None
ANY_NETWORK = Network("", 0, "float32", _NOTHING, _NOTHING, _NOTHING)  # only to compare programs

# What the results of a sweep can be sorted by.
METRICS = tuple(
    f"{split}-{kind}" for split in ("test", "val", "train") for kind in ("accuracy", "loss")
)


class SweepRun(BaseModel):
    """One combination of values: the folder of its run, and its settings."""

    model_config = ConfigDict(frozen=True)

    folder: str = Field(pattern=r"^[^./][^/]*$")  # a plain name, in the folder of the sweep
    settings: Settings
    origins: dict[str, str]
    fallback: str  # why its data replace others, or empty
    has_own_val: bool = False  # whether its data have validation images of their own

    @property
    def has_val(self) -> bool:
        return self.has_own_val or self.settings.data.val_fraction > 0

    @property
    def resolved(self) -> Resolved:
        return Resolved(self.settings, self.origins)


class SweepPlan(BaseModel):
    """Everything that a sweep is going to train."""

    model_config = ConfigDict(frozen=True)

    varied: tuple[str, ...]  # keys of the settings that have several values
    metric: str  # that the results are sorted by
    runs: tuple[SweepRun, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "SweepPlan":
        """Refuse what this version cannot have written."""
        folders = [run.folder for run in self.runs]
        if unknown := set(self.varied) - {setting.key for setting in SETTINGS}:
            raise ValueError(f"there is no setting {', '.join(sorted(unknown))}")
        if self.metric not in available_metrics(has_val=all(run.has_val for run in self.runs)):
            raise ValueError(f"not all runs have the metric {self.metric}")
        if len(set(folders)) < len(folders):
            raise ValueError("two runs have the same folder")
        for run in self.runs:
            for problem in run.settings.problems():
                raise ValueError(f"{run.folder}: {problem}")
        return self

    @property
    def varied_settings(self) -> list[Setting]:
        return [setting for setting in SETTINGS if setting.key in self.varied]

    def describe(self) -> str:
        """Return how many runs there are, and the grid."""
        grid = []
        for setting in self.varied_settings:
            values = dict.fromkeys(
                setting.text(setting.value_in(run.settings)) for run in self.runs
            )
            grid.append(" ".join((setting.flag, *values)))
        return f"{len(self.runs)} runs, {' x '.join(grid)}" if grid else "1 run"


def available_metrics(*, has_val: bool) -> list[str]:
    """Return the metrics that all runs have: those on held-out images need some."""
    return [metric for metric in METRICS if has_val or not metric.startswith("val")]


def choose_metric(metric: str | None, *, has_val: bool) -> str:
    """Return the metric to sort by; the default is the accuracy on the validation or test images.

    ``has_val`` says whether all runs have held-out images.

    Raises ``ConfigError`` for an unknown metric, and for one that not all runs have.
    """
    available = available_metrics(has_val=has_val)
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


class LoadedDatasets:
    """The data set that was loaded last."""

    def __init__(self) -> None:
        self._datasets: dict[config.DataSettings, Dataset] = {}

    def load(self, settings: Settings, progress: Progress | None = None) -> Dataset:
        if settings.data not in self._datasets:
            dataset, _ = setup.load_data(settings, progress=progress)
            # Also under the name that replaces auto.
            named = setup.name_dataset(Resolved(settings, {}), dataset).settings.data
            self._datasets.clear()
            self._datasets[settings.data] = self._datasets[named] = dataset
        return self._datasets[settings.data]


def make_plan(
    sweep: config.Sweep,
    metric: str | None,
    datasets: LoadedDatasets,
    progress: Progress | None = None,
) -> SweepPlan:
    """Return the plan of a new sweep; raises where data, devices or memory do not suffice.

    Raises as ``choose_metric``.
    """
    runs: list[SweepRun] = []
    programs: dict[Any, list[Settings]] = {}
    for number, cell in enumerate(map(setup.localize, sweep.cells), start=1):
        setup.permit_new(cell)
        dataset = datasets.load(cell.settings, progress)
        named = setup.name_dataset(cell, dataset)
        together = programs.setdefault(_program_key(named.settings), [])
        together.append(named.settings)
        program = Program(together, dataset)  # raises where devices or memory do not suffice
        if len(together) == 1:
            setup.try_network(program)
        runs.append(
            SweepRun(
                folder=_name_folder(number, named, sweep.varied),
                settings=named.settings,
                origins=named.origins,
                fallback=dataset.fallback,
                has_own_val=dataset.val is not None and named.settings.data.val_fraction == 0,
            )
        )
    varied = tuple(setting.key for setting in sweep.varied)
    metric = choose_metric(metric, has_val=all(run.has_val for run in runs))
    return SweepPlan(varied=varied, metric=metric, runs=tuple(runs))


def create_sweep(plan: SweepPlan, stack: contextlib.ExitStack) -> RunDirectory:
    """Make the folder of a sweep, with its plan, and lock it until ``stack`` is closed."""
    first = plan.runs[0].settings
    name = first.run.name or "sweep"
    if any(run.fallback for run in plan.runs):
        name += f"-{first.data.dataset}"
    text = plan.model_dump_json(indent=1) + "\n"
    return setup.create_folder(first.run, name, SWEEP, text, stack)


def merge_settings(plan: SweepPlan, overrides: Resolved, directory: RunDirectory) -> SweepPlan:
    """Merge the settings of all runs with overrides; raises as ``config.merge``.

    What varies is fixed: an override would be the same for all runs. Also permit the code of the
    networks; raises as ``setup.permit_model``.
    """

    def policy(setting: Setting) -> OnResume:
        return "fixed" if setting.key in plan.varied else config.sweep_policy(setting)

    runs = []
    for run in plan.runs:
        merged = config.merge(
            run.resolved,
            overrides,
            problem=f"the sweep {directory.path} cannot continue with other settings",
            hint="leave these out; each of its runs can be resumed by itself, with more --epochs",
            policy=policy,
        )
        task = RunTask(merged, RunDirectory(directory.path / run.folder), None)
        begun, model = setup.known_environment(task), merged.settings.model
        setup.permit_model(task.directory, begun, model, overrides)
        update = {"settings": merged.settings, "origins": merged.origins}
        runs.append(run.model_copy(update=update))
    return plan.model_copy(update={"runs": tuple(runs)})


def train_sweep(
    directory: RunDirectory,
    plan: SweepPlan,
    programs: Sequence[Sequence[RunTask]],
    newest: Mapping[RunDirectory, int | None],
    datasets: LoadedDatasets,
    callbacks: Callbacks,
    save_plot: SavePlot,
) -> bool:
    """Train the programs of a sweep one after the other; return whether none is left.

    ``newest`` has the epoch of the newest checkpoint of each run when ``programs`` were grouped. A
    program whose replicas all diverge does not end the others.
    """
    fallbacks = {run.folder: run.fallback for run in plan.runs}
    limit = TimeLimit(plan.runs[0].settings.run)
    with setup.resume_in_hints(directory):
        for number, tasks in enumerate(programs, start=1):
            if not limit.permits_epoch():
                break
            folders = [task.directory.path.name for task in tasks]
            names = ", ".join(folders)
            log.info("program %d of %d: %s", number, len(programs), names)
            try:
                with contextlib.ExitStack() as stack:
                    for task in tasks:
                        _lock(task.directory, newest[task.directory], stack)
                    fallback = fallbacks[folders[0]]
                    _train_program(tasks, datasets, fallback, callbacks, save_plot, limit)
            except NonFiniteLossError as error:
                log.warning("All seeds of %s diverged; the last: %s", names, error.problems[0])
            except PictureError as error:  # its runs are done
                log.warning("%s", "\n".join((*error.problems, error.hint)))
        if limit.is_reached:
            callbacks.on_stop(directory.path, *signals.describe_stop(limit.reason))
    return not limit.is_reached


def _lock(directory: RunDirectory, newest: int | None, stack: contextlib.ExitStack) -> None:
    """Make the folder of a run, if it is not there, and lock it until ``stack`` is closed.

    Raises ``BusyRunError`` where its newest checkpoint is not the one of the epoch ``newest``.
    """
    storage.make_folder(directory.path)
    stack.enter_context(directory.locked())
    if checkpoint.last_epoch(directory.checkpoints) != newest:
        raise BusyRunError(
            f"{directory.path} was trained by another process since the sweep was started",
            hint=f"{PROGRAM} resume {RunDirectory(directory.path.parent)} continues the sweep",
        )


def group_programs(
    directory: RunDirectory, plan: SweepPlan
) -> tuple[list[list[RunTask]], dict[RunDirectory, int | None]]:
    """Return the runs that are left to train, grouped by program.

    Also return the epoch of the newest checkpoint of each, by its file name.

    After a crash some runs of a program may be one epoch ahead: they go back to the epoch that
    all of them have. Raises as ``verify_runs``.
    """
    programs: dict[Any, list[RunTask]] = {}
    newest: dict[RunDirectory, int | None] = {}
    num_planned: Counter[Any] = Counter()
    for planned, previous in zip(plan.runs, verify_runs(directory, plan), strict=True):
        run, key = RunDirectory(directory.path / planned.folder), _program_key(planned.settings)
        num_planned[key] += 1
        if run.summary.exists() or _is_lost(run, planned) or _goes_further(run, planned):
            continue
        newest[run] = checkpoint.last_epoch(run.checkpoints)
        programs.setdefault(key, []).append(RunTask(planned.resolved, run, previous))
    groups: dict[Any, list[RunTask]] = {}
    for key, tasks in programs.items():
        ended = {task.directory: is_over(task) for task in tasks}
        epochs = (task.last_epoch for task in tasks if not ended[task.directory])
        first = min(epochs, default=0)
        for task in tasks:
            # What is over stays in its program: without it, the last bits of the others may differ.
            is_left = not ended[task.directory]
            earlier = task._replace(previous=_go_back(first, task)) if is_left else task
            epoch = earlier.last_epoch if is_left or first < 0 else first
            groups.setdefault((key, epoch), []).append(earlier)
    for (key, epoch), tasks in groups.items():
        if len(tasks) < num_planned[key] and epoch < tasks[0].resolved.settings.run.epochs:
            names = ", ".join(task.directory.path.name for task in tasks)
            log.warning(
                f"The other runs of the program of {names} are not trained again, so "
                "the last bits of its results may differ from those of an uninterrupted sweep."
            )
    return list(groups.values()), newest


def verify_runs(directory: RunDirectory, plan: SweepPlan) -> list[Checkpoint | None]:
    """Verify all runs, also those that are done; return the newest checkpoint of each.

    Raises ``RunError`` with everything that is damaged, and ``ChangedSettingsError`` for a run with
    other settings than in the plan; it may have more epochs.
    """
    keys = (setting.key for setting in SETTINGS if setting.key != "epochs")
    explicit = dict.fromkeys(keys, SWEEP)

    def verify(planned: SweepRun, run: RunDirectory) -> Checkpoint | None:
        if not has_begun(run):
            return None
        task = setup.read_task(run, Resolved(planned.settings, explicit))
        setup.refuse_damaged_run(task)
        return task.previous

    return visit_runs(directory, plan, verify)


def visit_runs(
    directory: RunDirectory, plan: SweepPlan, visit: Callable[[SweepRun, RunDirectory], T]
) -> list[T]:
    """Return what a function returns for each run; raise ``RunError`` with the damage of all."""
    results, damage, hints = list[T](), list[str](), list[str]()
    for planned in plan.runs:
        try:
            results.append(visit(planned, RunDirectory(directory.path / planned.folder)))
        except ForeignRunError:
            raise
        except RunError as error:
            damage += error.problems
            hints.append(error.hint)
    if damage:
        raise RunError(*damage, hint="\n".join(dict.fromkeys(hints)))
    return results


def has_begun(run: RunDirectory) -> bool:
    """Return whether a run of a sweep has more than an empty folder."""
    return run.config.exists() or run.metrics.exists() or run.checkpoints.exists()


def _program_key(settings: Settings) -> Any:
    """Return what the runs of one program have in common: all but the traced settings."""
    # Epochs of one step keep different schedules apart. The settings stand for the network.
    spec = Spec.from_settings(settings, ANY_NETWORK, num_examples=settings.data.batch_size)
    warmup = settings.optimizer.warmup_epochs
    return spec, settings.model, settings.data, settings.run.epochs, warmup


def _name_folder(number: int, resolved: Resolved, varied: Sequence[Setting]) -> str:
    """Name the folder of a run by its number and by the values that vary."""
    words = ",".join(
        f"{setting.key}={setting.short_text(resolved.settings).replace(',', 'x')}"
        for setting in varied
        if setting.matters_in(resolved.settings)
    )
    return f"{number:03}-{words}"[:LONGEST_NAME].replace("/", "-").rstrip("-")


def _goes_further(directory: RunDirectory, planned: SweepRun) -> bool:
    """Return whether a run was resumed by itself, with more epochs than the sweep has."""
    written = setup.read_settings(directory)
    if written is None or written.settings.run.epochs <= planned.settings.run.epochs:
        return False
    log.warning(
        f"{directory} has more epochs than the sweep: it is left as it is, and "
        f"{PROGRAM} resume {directory} continues it."
    )
    return True


def _is_lost(directory: RunDirectory, planned: SweepRun) -> bool:
    """Return whether all replicas of a run have diverged: they would diverge again."""
    if not directory.events.exists():
        return False
    endings = [event for event in Run(directory).events if isinstance(event, Ending)]
    diverged = {ending.replica for ending in endings if not ending.is_complete}
    return len(diverged) == len(planned.settings.run.seeds)


def _go_back(epoch: int, task: RunTask) -> Checkpoint | None:
    """Return the checkpoint of an earlier epoch, if it is kept and intact."""
    if task.last_epoch == epoch:
        return task.previous
    if epoch < 0:  # a crash in epoch 0, or another run was deleted
        return None if task.last_epoch == 0 else task.previous
    with contextlib.suppress(RunError):
        path = checkpoint.epoch_path(task.directory.checkpoints, epoch)
        return checkpoint.read_checkpoint(path)
    return task.previous


def _train_program(
    tasks: Sequence[RunTask],
    datasets: LoadedDatasets,
    fallback: str,
    callbacks: Callbacks,
    save_plot: SavePlot,
    limit: TimeLimit,
) -> None:
    """Train some runs together; what cannot be continued is refused before anything is written."""
    dataset = replace(datasets.load(tasks[0].resolved.settings), fallback=fallback)
    facts = setup.describe_data(dataset)
    for task in tasks:
        known, settings = setup.known_data(task), task.resolved.settings.data
        setup.refuse_other_data(task.directory, known, facts, dataset, settings)
        setup.refuse_damaged_run(task)
    program = Program([task.resolved.settings for task in tasks], dataset)
    for task in tasks:
        setup.write_settings(task.directory, task.resolved)
    fit(tasks, program, facts, callbacks, save_plot, limit)
