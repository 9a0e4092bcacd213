"""What comes before training: settings, threads, data, devices, the folder of a run and its lock.

No device is used before the number of threads is set.
"""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from plateau_train import config, data
from plateau_train.config import Resolved, Settings
from plateau_train.config.files import read_file
from plateau_train.config.toml import to_toml
from plateau_train.data.splits import Dataset, Progress
from plateau_train.errors import (
    PROGRAM,
    ConfigError,
    DataError,
    DataUnavailableError,
    ForeignRunError,
    InterruptedRunError,
    RunError,
    StorageError,
)
from plateau_train.process import cluster, signals
from plateau_train.run import checkpoint, environment, journal, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import FIND_HINT, RunDirectory, is_sweep, read_json
from plateau_train.run.environment import DatasetFacts, Environment
from plateau_train.run.journal import RunTask
from plateau_train.run.reader import describe_done, is_over
from plateau_train.training import models, state
from plateau_train.training.loop import Callbacks, NoCallbacks, SavePlot, fit, report_stop
from plateau_train.training.program import Program, enable_compilation_cache
from plateau_train.training.time_limit import TimeLimit

log = logging.getLogger("plateau_train")


def localize(resolved: Resolved) -> Resolved:
    """Resolve what depends on this process: the number of threads and the path of the data."""
    if resolved.settings.run.threads is None:
        cores = environment.available_cores()
        resolved = resolved.replace("threads", cores, "the available cores")
    data_dir = config.expand_home(resolved.settings.data.data_dir)
    if not data_dir.is_absolute():
        resolved = resolved.replace("data_dir", data_dir.absolute(), resolved.origin("data_dir"))
    return resolved.without_cluster()


def adopt(own: Resolved, leader: Resolved | None) -> Resolved | None:
    """Return the settings of process 0 with those that each process has of its own.

    ``leader`` are the settings in process 0, or None where there is nothing to train. Raises
    ``ChangedSettingsError`` in a process that was given another value of a shared setting.
    """
    text = cluster.broadcast_text("" if leader is None else leader.settings.model_dump_json())
    if not text:
        return None
    with cluster.fail_together():  # in every process: it is a collective
        if cluster.is_leader():
            return leader
        log.info("this is %s; process 0 prints and writes", cluster.describe())
        return config.merge(
            Resolved(Settings.model_validate_json(text), {}),
            own,
            problem=f"{cluster.describe()} has other settings than process 0",
            hint="start all processes with the same settings",
            policy=config.cluster_policy,
            why_not=lambda _setting, _value: "all processes share it",
        )


def load_data(
    settings: Settings,
    directory: RunDirectory | None = None,
    known: DatasetFacts | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[Dataset, DatasetFacts]:
    """Load the data in every process, of a new run or again for the run in ``directory``.

    ``progress`` is called while image files are decoded. Raises ``DataError`` where they are not
    the ``known`` ones that the run began with, and ``ClusterError`` where the processes have not
    loaded the same.
    """
    with cluster.fail_together():
        try:
            dataset = data.load(settings.data, progress)
        except DataUnavailableError as error:
            if directory is not None:
                error.hint = _hint_of_place(settings.data)
            raise
        if directory is None and dataset.fallback:
            log.warning(
                f"Training on {dataset.name} ({dataset.source}), NOT on Fashion-MNIST:\n"
                f"{dataset.fallback}.\nTo get the real data, type {PROGRAM} data prepare, with "
                "a network, or with --from DIR and the four original files."
            )
        if known is not None:
            dataset = replace(dataset, fallback=known.fallback)
        facts = describe_data(dataset)
        if directory is not None:
            refuse_other_data(directory, known, facts, dataset, settings.data)
        enable_compilation_cache(settings.data.cache_dir)
    cluster.require_same("data", facts.sha256)
    cluster.require_same("versions", json.dumps(environment.describe_versions()))
    return dataset, facts


def refuse_other_data(
    directory: RunDirectory,
    before: DatasetFacts | None,
    facts: DatasetFacts,
    dataset: Dataset,
    settings: config.DataSettings,
) -> None:
    """Raise ``DataError`` where the data are not those that a run began with."""
    if before is not None and before.sha256 != facts.sha256:
        raise DataError(
            f"{directory.path} was trained on {before.name} of SHA-256 {before.sha256[:12]}..., "
            f"and {dataset.name} ({dataset.source}) has {facts.sha256[:12]}...",
            hint=f"the run needs the data that it began with: {_hint_of_place(settings)}",
        )


def _hint_of_place(settings: config.DataSettings) -> str:
    """Return how to give the data of a run that are in another place now."""
    if settings.path is not None:
        return "give the path that they have now: --dataset PATH"
    if settings.is_custom:
        return "give the arrays again in Python: dataset=(x_train, y_train, x_test, y_test)"
    return "give the folder that they are in now: --data-dir DIR"


def describe_data(dataset: Dataset) -> DatasetFacts:
    """Return what a resumed run must find again."""
    return DatasetFacts.model_validate(dataset, from_attributes=True)


def name_dataset(resolved: Resolved, dataset: Dataset) -> Resolved:
    """Replace ``auto`` by the name of the data set that was loaded."""
    if resolved.settings.data.dataset != data.AUTO:
        return resolved
    origin = f"auto: {dataset.fallback}" if dataset.fallback else "auto"
    return resolved.replace("dataset", dataset.name, origin)


def create_folder(
    settings: config.RunSettings, name: str, file: str, text: str, stack: contextlib.ExitStack
) -> RunDirectory:
    """Make a new folder with its first file, and lock it until ``stack`` is closed."""
    directory = RunDirectory.create(config.expand_home(settings.runs_dir), name)
    stack.enter_context(directory.locked())
    try:
        storage.write_text(directory.path / file, text)
    except StorageError:
        shutil.rmtree(directory.path, ignore_errors=True)
        raise
    return directory


def open_run(directory: RunDirectory, overrides: Resolved, stack: contextlib.ExitStack) -> RunTask:
    """Lock a run and read what it continues from; nothing is written, and no device is used.

    Raises ``BusyRunError`` where another process has locked it, ``RunError`` where no checkpoint is
    intact, and ``ChangedSettingsError`` for settings that it cannot change.
    """
    stack.enter_context(directory.locked())
    return read_task(directory, overrides)


def read_task(directory: RunDirectory, overrides: Resolved) -> RunTask:
    """Read what a run continues from; warn of damaged checkpoints, and raise as ``open_run``."""
    previous, problems = checkpoint.read_newest(directory.checkpoints)
    refuse_lost_run(directory, previous, problems)
    if problems and previous:
        where = f"The run continues from epoch {previous.manifest.epoch}."
        log.warning("%s", "\n".join((*problems, where)))
    return RunTask(merge_settings(directory, overrides, previous), directory, previous)


def check_run(task: RunTask, overrides: Resolved) -> None:
    """Verify the files of a run with its network, whose code may use the devices.

    Raises ``RunError`` where a file that it needs is damaged, and as ``permit_model``.
    """
    model = task.resolved.settings.model
    permit_model(task.directory, known_environment(task), model, overrides)
    refuse_damaged_run(task)


def permit_model(
    directory: RunDirectory,
    begun: Environment | None,
    model: config.ModelSettings,
    overrides: Resolved,
) -> None:
    """Permit the code of a run's network where the user named it, now or before.

    Raises ``RunError`` for code that the run was not trained with, and ``ConfigError`` for code
    that the user has not named.
    """
    models.refuse_other_source(directory, begun and begun.model, model)
    models.permit(model, overrides.own_cache_dir, is_named=overrides.is_typed("model"))


def permit_new(resolved: Resolved) -> None:
    """Permit the code of the network of a new run where the user named it, now or before.

    A file with settings does not name it: it may be that of a run from somebody else.
    """
    model, is_named = resolved.settings.model, resolved.is_typed("model")
    models.permit(model, resolved.own_cache_dir, is_named=is_named)


def find_model(begun: Settings, overrides: Resolved) -> config.ModelSettings:
    """Return the network of a run, in the file or module that the user names for it now."""
    if not overrides.is_explicit("model"):
        return begun.model
    return begun.model.model_copy(update={"model": overrides.settings.model.model})


def refuse_damaged_run(task: RunTask) -> None:
    """Raise ``RunError`` if a run cannot continue from its checkpoint."""
    if task.previous is None:
        return
    if damage := list(journal.verify(task.directory, task.previous.manifest)):
        raise RunError(*damage, hint=journal.RESTORE_HINT)
    state.restore(task.previous, task.resolved.settings.model)


def known_environment(task: RunTask) -> Environment | None:
    """Return what is known of the data and the network that a run began with."""
    if task.previous is not None:
        return task.previous.manifest.environment
    with contextlib.suppress(RunError):  # nothing was trained yet: nothing is lost
        return read_json(task.directory.environment, Environment)
    return None


def known_data(task: RunTask) -> DatasetFacts | None:
    """Return what is known of the data that a run began with."""
    environment = known_environment(task)
    return environment and environment.dataset


def is_done(task: RunTask) -> bool:
    """Return whether a run has ended, is drawn, and all of its files can be read."""
    directory = task.directory
    if task.previous is None or not (directory.summary.exists() and directory.plot.exists()):
        return False
    return is_over(task) and not list(unreadable_files(task))


def unreadable_files(task: RunTask) -> Iterator[str]:
    """Yield the problems of the files that a resume writes again."""
    reads: list[Callable[[], object]] = [task.directory.settings]
    if task.previous is not None:  # before the first epoch it may not exist yet
        reads.append(partial(read_json, task.directory.environment, Environment))
        reads.append(partial(models.require_copy, task.directory, known_environment(task)))
    for read in reads:
        try:
            read()
        except RunError as error:
            yield from error.problems


def refuse_lost_run(
    directory: RunDirectory, previous: Checkpoint | None, problems: Sequence[str]
) -> None:
    """Raise ``RunError`` where a run had begun and none of its checkpoints is intact.

    A failed restore never becomes a fresh start.
    """
    if previous is not None:
        return
    # Before the first checkpoint there is no line of an epoch after 0.
    files = [path for path in (directory.metrics, directory.timings) if path.is_file()]
    has_trained = any(re.search(rb'"epoch":[1-9]', read_file(path)) for path in files)
    if problems or directory.summary.exists() or has_trained:
        raise RunError(
            *(problems or [f"{directory.checkpoints} has no checkpoint"]),
            hint="restore a checkpoint from a copy, or start a new run; nothing was deleted",
        )
    if not directory.config.exists():
        raise RunError(
            f"{directory.path} is not a run folder: it has no {directory.config.name} and no "
            "checkpoint",
            hint=FIND_HINT,
        )


def merge_settings(
    directory: RunDirectory, overrides: Resolved, previous: Checkpoint | None
) -> Resolved:
    """Merge the settings of a run with its ``config.toml``, perhaps edited, and with overrides."""
    sources = (overrides,)
    if previous is None:
        begun = directory.settings()
    else:
        begun = Resolved(previous.manifest.settings, previous.manifest.origins)
        if edited := read_settings(directory):
            sources = (edited, overrides)

    return config.merge(
        begun,
        *sources,
        problem=f"{directory.path} cannot continue with other settings",
        hint=f"leave these out, also in {directory.config}, or start a new run",
    )


def write_settings(directory: RunDirectory, resolved: Resolved) -> None:
    """Write ``config.toml`` unless it has the same settings, whatever their origins.

    Also write the code of a user's network beside it.
    """
    written = read_settings(directory)
    if written is None or written.settings != resolved.settings:
        storage.write_text(directory.config, to_toml(*resolved))
    source = models.find_source(resolved.settings.model)
    if source is not None and not environment.is_copy(directory.model, source.facts):
        storage.write_bytes(directory.model, source.code)


def read_settings(directory: RunDirectory) -> Resolved | None:
    """Read ``config.toml``, or return None where it is missing or damaged: it is written again.

    Raises ``ForeignRunError`` where it is of another version.
    """
    try:
        return directory.settings()
    except ForeignRunError:
        raise
    except RunError:
        return None


def check(directory: RunDirectory, overrides: Resolved) -> Iterator[str]:
    """Verify everything that a run would continue from, and yield what is intact.

    Nothing is changed. Raises ``RunError`` at the end with everything that is damaged and with
    what a resume does, and ``ChangedSettingsError`` where a resume would.
    """
    problems: list[str] = []
    newest: Checkpoint | None = None
    with directory.locked():
        yield from _permit_check(directory, overrides)
        for file in checkpoint.candidates(directory.checkpoints):
            try:
                intact = checkpoint.read_checkpoint(file)
                model = find_model(intact.manifest.settings, overrides)
                if models.is_permitted(model):
                    state.restore(intact, model)
            except ForeignRunError:
                raise
            except RunError as error:
                problems += error.problems
                continue
            newest = newest or intact
            best = newest.manifest.best_epoch
            # After a crash the newest, if it is the best, may not have its second name yet.
            if file.name == checkpoint.BEST and best not in (
                intact.manifest.epoch,
                newest.manifest.epoch,
            ):
                problems.append(
                    f"{file} is of epoch {intact.manifest.epoch}, and the best epoch is {best}"
                )
                continue
            yield f"{file}: intact, epoch {intact.manifest.epoch}"
        refuse_lost_run(directory, newest, problems)
        task = RunTask(merge_settings(directory, overrides, newest), directory, newest)
        damage = list(journal.verify(directory, newest and newest.manifest))
        others = [*damage, *unreadable_files(task)]
        problems += others
        if not others:
            yield f"{directory.path}: intact, with settings, metrics, events and timings"
    after = _next_step(task, has_damage=bool(damage), has_problems=bool(problems))
    if problems:
        raise RunError(*problems, hint=after)
    yield after


def _permit_check(directory: RunDirectory, overrides: Resolved) -> Iterator[str]:
    """Permit the code of a run's network, or yield that it is not used."""
    newest, _ = checkpoint.read_newest(directory.checkpoints, checkpoint.read_manifest)
    if newest is None:
        return
    try:
        model = find_model(newest.settings, overrides)
        permit_model(directory, newest.environment, model, overrides)
    except ConfigError as error:
        yield f"arrays are not compared with the network: {error.problems[0]}"


def _next_step(task: RunTask, *, has_damage: bool, has_problems: bool) -> str:
    """Return what a resume of a run does."""
    if has_damage:
        return journal.RESTORE_HINT
    command = f"{PROGRAM} resume {task.directory}"
    if task.previous is None:
        return f"{command} starts it again"
    if not has_problems and is_done(task):
        return f"{command} has nothing to do: {describe_done(task)}"
    return f"{command} continues it from epoch {task.previous.manifest.epoch}"


def describe_stop(directory: RunDirectory, command: str) -> signals.Stop:
    """Return how far a run got, and how to continue it and to look at it."""
    epoch = checkpoint.last_epoch(directory.checkpoints)
    if epoch is not None:
        look = f"{PROGRAM} plot {directory} draws what it has so far"
        return signals.Stop(f"after epoch {epoch}", f"{command}\n{look}")
    is_run = not is_sweep(directory.path)
    return signals.Stop("before epoch 0 was finished" if is_run else "", command)


@contextlib.contextmanager
def resume_in_hints(directory: RunDirectory | None) -> Iterator[None]:
    """Name the command that continues a run, and the epoch that is safe if the disk fails."""
    if directory is None:
        signals.set_description(
            lambda: signals.Stop("", "process 0 prints how to continue the run")
        )
        yield
        return
    what = "the sweep" if is_sweep(directory.path) else "it"
    command = f"{PROGRAM} resume {directory} continues {what}"
    signals.set_description(partial(describe_stop, directory, command))
    try:
        yield
    except InterruptedRunError as error:
        if checkpoint.last_epoch(directory.checkpoints) is not None:
            error.run = directory.path
        raise
    except StorageError as error:
        error.hint = f"free disk space or allow writing, then {command}"
        if not directory.path.is_dir():
            error.hint = "the folder was moved or removed: resume the run where it is now"
        elif not is_sweep(directory.path):
            epoch = checkpoint.last_epoch(directory.checkpoints)
            safe = "no epoch is done yet" if epoch is None else f"epoch {epoch} is safe"
            error.hint = f"{safe}: {error.hint}"
        raise


def try_network(program: Program) -> None:
    """Take a step with a user's network; raises ``ConfigError`` where that fails."""
    model = program.runs[0].model
    if models.find_source(model) is not None:  # the built-in ones are tested
        with models.explained(model):
            Program(program.runs, program.dataset).try_step()  # its arrays are freed at once


def train_run(
    resolved: Resolved,
    opened: RunTask | None,
    callbacks: Callbacks,
    save_plot: SavePlot,
    stack: contextlib.ExitStack,
    *,
    is_new: bool,
) -> RunDirectory | None:
    """Train one run in every process: in process 0 the one that it opened, or a new one.

    Returns its folder in process 0. Everything that can be refused is refused before anything is
    written. The folder of a new run is locked until ``stack`` is closed. A run that ``--max-time``
    stops is drawn as far as it got.
    """
    directory, known = (opened.directory, known_data(opened)) if opened else (None, None)
    with callbacks.loading() as progress:
        dataset, facts = load_data(resolved.settings, directory, known, progress=progress)
    resolved = name_dataset(resolved, dataset)
    with cluster.fail_together():
        program = Program([resolved.settings], dataset)
    if is_new:  # in every process: only process 0 opens a run
        try_network(program)
    tasks: list[RunTask] = []
    with cluster.fail_together():
        if cluster.is_leader():
            if directory is None:
                name = resolved.settings.run.name or resolved.settings.schedule_name
                name += f"-{dataset.name}" if dataset.fallback else ""
                text = to_toml(*resolved)
                directory = create_folder(resolved.settings.run, name, "config.toml", text, stack)
            write_settings(directory, resolved)
            tasks.append(RunTask(resolved, directory, opened and opened.previous))
            try:
                directory.make_latest()
            except StorageError as error:  # nothing depends on the link
                log.warning("%s", "\n".join(error.problems))
    limit = TimeLimit(resolved.settings.run)
    with resume_in_hints(directory):
        fit(tasks, program, facts, callbacks if tasks else NoCallbacks(), save_plot, limit)
        if directory is not None and limit.is_reached:
            report_stop(directory, limit, callbacks, save_plot)
    return directory
