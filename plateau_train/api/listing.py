"""List the runs of a folder: the progress, the accuracies and the status of each."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from plateau_train.config import Settings
from plateau_train.errors import PROGRAM, ForeignRunError, RunError
from plateau_train.report.console import Column
from plateau_train.report.rows import Row
from plateau_train.run.directory import LATEST, RunDirectory, is_sweep
from plateau_train.run.history import History, early_endings
from plateau_train.run.reader import Run
from plateau_train.run.results import ReplicaResult, Results

log = logging.getLogger("plateau_train")

Problem = Literal["damaged", "unreadable"]

COLUMNS = (
    Column("name", "name", is_number=False),
    Column("settings.schedule_name", "rule", is_number=False, omit=6),
    Column("settings.run.seeds", "seeds", len, omit=3),
    Column("settings.data.name", "data", is_number=False, omit=5),
    Column("progress", "epochs", omit=8),
    Column("results.best_score.mean", "best", ".4f"),
    Column("results.best_epoch", "at", omit=2),
    Column("results.final_score.mean", "final", ".4f", omit=7),
    Column("results.split", "split", is_number=False, omit=1),
    Column("results.final_scale.geometric_mean", "scale", ".6g", omit=4),
    Column("status", "status", is_number=False),
)

# The names of the fields of each row.
FIELDS = ("run", "folder", "status", "problems", "epochs", *ReplicaResult._fields)


class ListedRun(NamedTuple):
    """What can be read of a run; None stands for what is missing, damaged or of another version.

    ``problems`` say what is.
    """

    name: str
    path: Path
    state: Literal["running", "done", "failed", "stopped", "damaged", "unreadable"]
    problems: tuple[str, ...]
    settings: Settings | None
    results: Results | None
    histories: Sequence[History]  # empty where they cannot be read

    @property
    def progress(self) -> str | None:
        """The last epoch and the planned number of epochs."""
        planned = "-" if self.settings is None else self.settings.run.epochs
        return None if self.results is None else f"{self.results.epoch}/{planned}"

    @property
    def status(self) -> str:
        """The state, and why the replicas of a run that is done ended early, if they did."""
        reasons = dict.fromkeys(ending.reason for ending in early_endings(self.histories))
        is_shown = reasons and self.state == "done"
        return f"{self.state} ({', '.join(reasons)})" if is_shown else self.state

    def rows(self) -> list[Row]:
        """Return a row for each replica, or one for a run of which none can be read."""
        epochs = None if self.settings is None else self.settings.run.epochs
        values = self.name, str(self.path), self.state, "; ".join(self.problems) or None, epochs
        row = dict(zip(FIELDS, values, strict=False))
        if self.settings is None or not self.histories:
            return [dict.fromkeys(FIELDS) | row]
        return [
            row | ReplicaResult.of(history, self.settings)._asdict() for history in self.histories
        ]


def list_runs(runs_dir: Path) -> list[ListedRun]:
    """Return the runs of a folder by name, which begins with the time.

    Raises ``RunError`` if the folder exists and cannot be listed.
    """
    try:
        paths = sorted(runs_dir.iterdir())
    except FileNotFoundError:
        paths = []
    except OSError as error:
        raise RunError(
            f"{runs_dir} cannot be listed: {error.strerror}",
            hint="give the folder of the run folders: --runs-dir DIR",
        ) from error
    visible = [path for path in paths if path.name != LATEST and not path.name.startswith(".")]
    runs = [run for path in visible if (run := _read(Run(RunDirectory(path))))]
    sweeps = [RunDirectory(path) for path in visible if is_sweep(path)]
    for sweep in sweeps:
        log.info(f"{sweep} is a sweep: {PROGRAM} runs {sweep} lists its runs")
    if not runs and is_sweep(runs_dir):
        sweep = RunDirectory(runs_dir)
        log.info(f"no epoch of {sweep} is done: {PROGRAM} resume {sweep} trains its runs")
    elif not runs and not sweeps:
        log.info(f"there is no run in {runs_dir}: {PROGRAM} trains one")
    return runs


def _read(run: Run) -> ListedRun | None:
    """Read as much of a run as possible; return None for a folder that is not a run."""
    files, problems = run.directory, dict[str, Problem]()
    settings, results, histories, state = None, None, [], "damaged"
    with _collect(problems, run):
        if not any(part.exists() for part in (files.config, files.metrics, files.checkpoints)):
            return None
    with _collect(problems, run):
        settings = run.settings
    with _collect(problems, run):
        results, histories = (run.results, run.histories) if run.records else (None, [])
    with _collect(problems, run):
        state = run.state
    if not files.path.exists():  # it was just removed
        return None
    if problems:
        state = "damaged" if "damaged" in problems.values() else "unreadable"
    facts = tuple(sorted(problems)), settings, results, histories
    return ListedRun(files.path.name, files.path, state, *facts)


@contextlib.contextmanager
def _collect(problems: dict[str, Problem], run: Run) -> Iterator[None]:
    """Record why the block could not read a file, and continue after the block."""
    try:
        yield
    except RunError as error:
        kind = "unreadable" if isinstance(error, ForeignRunError) else "damaged"
        problems |= dict.fromkeys(error.problems, kind)
    except OSError as error:  # a folder without permission, or one that was just removed
        problems[f"{run.directory.path} cannot be read: {error.strerror}"] = "damaged"
