"""The only loop over epochs: train, evaluate, record, commit beside the next one, report."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from plateau_train.config import Settings
from plateau_train.data.splits import Progress
from plateau_train.errors import (
    PROGRAM,
    InterruptedRunError,
    PictureError,
    PlateauTrainError,
    StorageError,
)
from plateau_train.numerics.model import measure, name_arrays
from plateau_train.numerics.step import TrainState
from plateau_train.process import cluster, memory, signals
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import DatasetFacts, Environment, describe_environment
from plateau_train.run.history import History
from plateau_train.run.info import TrainingInfo, summarize
from plateau_train.run.journal import EpochLines, Journal, RunTask
from plateau_train.run.reader import Run, is_over
from plateau_train.run.records import Ending, Notice, RunWarning
from plateau_train.training.models import find_source
from plateau_train.training.program import EpochArrays, Program
from plateau_train.training.records import make_lines
from plateau_train.training.state import restore
from plateau_train.training.time_limit import TimeLimit
from plateau_train.training.writer import Writer

log = logging.getLogger("plateau_train")

SavePlot = Callable[[Path, Sequence[History], Settings], object]


class Callbacks(Protocol):
    """What the loop calls; ``NoCallbacks`` ignores everything."""

    def loading(self) -> contextlib.AbstractContextManager[Progress | None]:
        """Called before the data are loaded; the result is closed after it.

        It may yield a function that is called while image files are decoded.
        """
        return contextlib.nullcontext()

    def on_start(self, info: TrainingInfo) -> None:
        """Called before the first step."""

    def on_epoch_start(self, epoch: int, num_epochs: int, num_steps: int) -> None:
        """Called before each epoch, and once more before the first one is compiled."""

    def on_chunk(self, step: int, loss: float) -> None:
        """Called after some steps of an epoch, with the mean loss of the last one."""

    def on_epoch(self, lines: Sequence[EpochLines], settings: Settings) -> None:
        """Called after an epoch is committed, with what each run recorded.

        The next epoch may have started by then.
        """

    def on_finish(self, run: Run, seconds: float) -> None:
        """Called after a run is finished."""

    def on_stop(self, folder: Path, message: str, hint: str) -> None:
        """Called after ``--max-time`` stopped the run or the sweep of a folder."""

    def close(self) -> None:
        """Called at the end of training, also after an error."""


class NoCallbacks(Callbacks):
    """The callbacks of the processes that print nothing."""


def fit(
    tasks: Sequence[RunTask],
    program: Program,
    facts: DatasetFacts,
    callbacks: Callbacks,
    save_plot: SavePlot,
    limit: TimeLimit,
) -> None:
    """Train the runs of a program into their folders; they all continue from the same epoch.

    A run that the time limit stops has no ending, and a resume continues it. Only process 0 has
    ``tasks``: the others write nothing. Raises ``NonFiniteLossError`` when all replicas have
    diverged.
    """
    started = time.perf_counter()
    source = find_source(program.runs[0].model)
    environment = describe_environment(program.device_names(), facts, source and source.facts)
    with cluster.fail_together():
        journals = [_open_journal(task, environment) for task in tasks]
        for task in tasks:
            settings = task.resolved.settings
            info = describe_training(settings, task.directory, task.last_epoch, program)
            callbacks.on_start(info)
    first_epoch, state = _restore(tasks, program)
    try:
        with (
            memory.report_exhaustion(),
            signals.graceful_shutdown(cluster.grace_seconds()),
            Writer() as writer,
        ):
            _train_into(journals, program, first_epoch, state, callbacks, limit, writer)
        is_stopped, failures = any(program.endings.is_active), list[PictureError | None]()
        for task, journal in zip(tasks, journals, strict=True):
            if is_stopped:  # all of them: a resume trains them in one program again
                message, _ = signals.describe_stop(limit.reason)
                journal.note(Notice(event="interrupted", message=message))
            else:
                failures.append(_finish(Run(task.directory), save_plot, callbacks, started))
    except (PlateauTrainError, KeyboardInterrupt) as error:
        _note_failure(journals, program, error)
        raise
    finally:
        callbacks.close()
    if failure := next(filter(None, failures), None):  # every run has its summary by now
        raise failure


def _train_into(
    journals: Sequence[Journal],
    program: Program,
    first_epoch: int,
    state: TrainState | None,
    callbacks: Callbacks,
    limit: TimeLimit,
    writer: Writer,
) -> None:
    """Train, and commit each epoch beside the training of the next one."""

    def commit(lines: Sequence[EpochLines], state: TrainState) -> None:
        for run, journal in enumerate(journals):
            _commit(journal, lines[run], program.rows_of(run), state)

    def on_chunk(step: int, loss: float) -> None:
        with cluster.fail_together():
            writer.poll()
        callbacks.on_chunk(step, loss)

    began = time.monotonic()
    epochs = train(program, first_epoch, state, callbacks.on_epoch_start, on_chunk, limit)
    for epoch, (lines, arrays) in enumerate(epochs, start=first_epoch):
        report = partial(callbacks.on_epoch, lines, program.runs[0])
        with cluster.fail_together():
            writer.submit(partial(commit, lines, arrays.state), report)
        if epoch > 0:
            limit.add_epoch(time.monotonic() - began + writer.seconds)
        began = time.monotonic()
    with cluster.fail_together():
        writer.wait()


def train(
    program: Program,
    first_epoch: int,
    state: TrainState | None,
    on_epoch_start: Callable[[int, int, int], None],
    on_chunk: Callable[[int, float], None],
    limit: TimeLimit,
) -> Iterator[tuple[list[EpochLines], EpochArrays]]:
    """Yield the results of each epoch: what each run records, and the arrays.

    Starts with the untrained epoch 0, or continues from a host state. The keys of an epoch are
    derived from its number, so it is the same epoch as in a run that was never stopped.
    """
    endings = program.endings
    if not any(endings.is_active):
        return
    epoch, num_epochs = first_epoch, program.runs[0].run.epochs
    on_epoch_start(epoch, num_epochs, program.steps_per_epoch)
    program.load(state)
    while any(endings.is_active) and limit.permits_epoch():
        on_epoch_start(epoch, num_epochs, program.steps_per_epoch)
        arrays = program.run_epoch(epoch, on_chunk)
        if state is not None:
            arrays = arrays._replace(state=_keep_ended(endings.is_active, state, arrays.state))
        lines = make_lines(program, arrays, epoch, state)
        state = arrays.state  # before the next epoch; the one before this is not needed any more
        yield lines, arrays
        epoch += 1


def _keep_ended(is_active: Sequence[bool], before: TrainState, after: TrainState) -> TrainState:
    """Return the host state after an epoch, in which what has ended stays as it was before it.

    The devices train it further, unrecorded.
    """
    if all(is_active):
        return after

    def choose(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.where(np.expand_dims(is_active, tuple(range(1, new.ndim))), new, old)

    return jax.tree.map(choose, before, after)


def _open_journal(task: RunTask, environment: Environment) -> Journal:
    """Open the files of a run, and record its resume or its fallback data."""
    journal = Journal(task, environment)
    dataset, previous = environment.dataset, task.previous
    if previous is None:
        if dataset.fallback:
            message = f"{dataset.name}: {dataset.fallback}"
            journal.note(RunWarning(reason="fallback", message=message))
        return journal
    message = f"after epoch {task.last_epoch}"
    if changes := list(previous.manifest.environment.differences(environment)):
        why = f"no longer bit-exact: {', '.join(changes)}"
        message += f"; {why}"
        log.warning("From here on this run is %s.", why)
    journal.note(Notice(event="resumed", message=message))
    return journal


def describe_training(
    settings: Settings, directory: RunDirectory, last_epoch: int, program: Program
) -> TrainingInfo:
    """Describe a training of a program; ``last_epoch`` is that of its checkpoint, or -1."""
    shape, spec = program.dataset.image_shape, program.replicas.spec
    num_params = measure(spec.network, shape).num_params
    return TrainingInfo(
        settings=settings,
        directory=directory,
        data=program.dataset.describe(),
        model=f"{spec.network.title}, {num_params:,} parameters",
        devices=f"{program.describe_devices()}, {spec.network.precision}, jax {jax.__version__}",
        memory=program.memory,
        steps_per_epoch=program.steps_per_epoch,
        last_epoch=last_epoch,
    )


def _restore(tasks: Sequence[RunTask], program: Program) -> tuple[int, TrainState | None]:
    """Return the first epoch and the state to continue from; mark what has ended or stalled.

    A run that is over may have ended in another epoch. Only process 0 has read the checkpoints.
    """
    going_on = [task for task in tasks if not is_over(task)]
    last_epoch = max((task.last_epoch for task in going_on or tasks), default=0)
    _, last_epoch = cluster.agree(value=last_epoch)
    if last_epoch < 0:
        return 0, None
    state, is_active = program.empty_state(), np.ones(len(program.members), bool)
    has_completed = False
    if tasks:
        checkpoints = [task.previous for task in tasks if task.previous]
        model = program.runs[0].model
        states = [restore(previous, model) for previous in checkpoints]
        state = jax.tree.map(lambda *rows: np.concatenate(rows), *states)
        runs = [
            Run(task.directory, previous.manifest)
            for task, previous in zip(tasks, checkpoints, strict=True)
        ]
        active = {
            (number, history.replica)
            for number, (run, task) in enumerate(zip(runs, tasks, strict=True))
            for history in run.histories
            if history.last_epoch == last_epoch
            and not history.is_over(task.resolved.settings.run.epochs)
        }
        has_completed = any(
            history.is_over(task.resolved.settings.run.epochs) and not history.has_diverged
            for run, task in zip(runs, tasks, strict=True)
            for history in run.histories
        )
        program.stalls.warned = {
            (number, event.replica, event.reason)
            for number, run in enumerate(runs)
            for event in run.events
            if isinstance(event, RunWarning)
        }
        is_active = np.array([(member.run, member.replica) in active for member in program.members])
    state, is_active, has_completed = cluster.broadcast((state, is_active, has_completed))
    program.endings.is_active = np.asarray(is_active).tolist()
    program.endings.has_completed = bool(has_completed)
    return last_epoch + 1, state


def _commit(journal: Journal, lines: EpochLines, rows: Sequence[int], state: TrainState) -> None:
    """Write an epoch of a run; if its last replicas have diverged in it, write their endings."""
    if lines.records:
        own = jax.tree.map(lambda array: array[rows[0] : rows[-1] + 1], state)
        journal.commit(lines, name_arrays(own))
        return
    endings = [event for event in lines.events if isinstance(event, Ending)]
    for ending in endings:
        journal.note(ending)
    if endings and Run(journal.directory).has_only_diverged:
        journal.note(Notice(event="failed", message="all seeds of this run diverged"))


def _finish(
    run: Run, save_plot: SavePlot, callbacks: Callbacks, started: float
) -> PictureError | None:
    """Save the summary and the plot of a run that has ended.

    Return the error if the run could not be drawn: the run is done all the same.
    """
    if run.has_only_diverged:
        return None
    directory, failure = run.directory, None
    storage.write_text(directory.summary, json.dumps(summarize(run), indent=2) + "\n")
    try:
        _draw(run, "done", save_plot)
    except PictureError as error:
        failure = error
    callbacks.on_finish(run, time.perf_counter() - started)
    return failure


def report_stop(
    directory: RunDirectory, limit: TimeLimit, callbacks: Callbacks, save_plot: SavePlot
) -> None:
    """Report how far a run got until the time limit, and draw it; raises as ``_draw``."""
    callbacks.on_stop(directory.path, *signals.describe_stop(limit.reason))
    _draw(Run(directory), "stopped", save_plot)


def _draw(run: Run, state: str, save_plot: SavePlot) -> None:
    """Save the plot of a run; raises ``PictureError``, which says that the run is in a state."""
    directory = run.directory
    try:
        save_plot(directory.plot, run.histories, run.settings)
    except Exception as error:  # matplotlib, its configuration, a font, the disk
        raise PictureError(
            f"{directory} is {state}, but its picture could not be drawn: {_reason_of(error)}",
            hint=f"{PROGRAM} plot {directory} draws it again",
        ) from error


def _reason_of(error: Exception) -> str:
    """Return the reason of an error in one line."""
    if isinstance(error, PlateauTrainError):
        return "; ".join(error.problems)
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _note_failure(
    journals: Sequence[Journal], program: Program, error: PlateauTrainError | KeyboardInterrupt
) -> None:
    """Record in each run that had not ended why training stopped, and which replicas diverged."""
    is_failure = isinstance(error, PlateauTrainError)
    reason = "; ".join(error.problems) if is_failure else "stopped (KeyboardInterrupt)"
    is_interrupted = not is_failure or isinstance(error, InterruptedRunError)
    kind = "interrupted" if is_interrupted else "failed"
    new = program.endings.take()
    for run, journal in enumerate(journals):
        if journal.has_failed:
            continue
        with contextlib.suppress(StorageError):
            for row in filter(new.get, program.rows_of(run)):
                journal.note(new[row])
            journal.note(Notice(event=kind, message=reason))
