"""List the runs of a folder: how far each is, how well it does, and its state."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from plateau_train.errors import RunError
from plateau_train.report.console import Column, Table, print_table, printable
from plateau_train.run.directory import LATEST, SWEEP, RunDirectory
from plateau_train.run.history import best_epoch, records_at
from plateau_train.run.reader import Run

log = logging.getLogger("plateau_train")

COLUMNS = (
    Column("name", "name", is_number=False),
    Column("rule", "rule", is_number=False),
    Column("num_seeds", "seeds"),
    Column("dataset", "data", is_number=False),
    Column("progress", "epochs"),
    Column("best", "best", ".4f"),
    Column("best_epoch", "at"),
    Column("final", "final", ".4f"),
    Column("split", "split", is_number=False),
    Column("scale", "scale", ".6g"),
    Column("state", "state", is_number=False),
)

# The name of a run implies most of these.
DROP_ORDER = ("split", "at", "seeds", "scale", "data", "rule", "final", "epochs")


class ListedRun(NamedTuple):
    """A run as far as it can be read; None stands for what is missing or cannot be read.

    ``best`` and ``final`` are accuracies on the images of ``split``. They and ``scale`` are means
    over the replicas that reached the epoch. ``problems`` say what is damaged.
    """

    name: str
    state: Literal["running", "done", "failed", "stopped", "damaged"]
    problems: tuple[str, ...] = ()
    rule: str | None = None
    num_seeds: int | None = None
    dataset: str | None = None
    num_epochs: int | None = None
    epoch: int | None = None
    best: float | None = None
    best_epoch: int | None = None
    final: float | None = None
    split: str | None = None
    scale: float | None = None

    @property
    def progress(self) -> str | None:
        """The last epoch and the planned number of epochs."""
        planned = "-" if self.num_epochs is None else self.num_epochs
        return None if self.epoch is None else f"{self.epoch}/{planned}"


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
            hint="give the folder that the run folders are in: --runs-dir DIR",
        ) from error
    visible = [path for path in paths if path.name != LATEST and not path.name.startswith(".")]
    runs = [run for path in visible if (run := _read(Run(RunDirectory(path))))]
    sweeps = [RunDirectory(plan.parent) for plan in sorted(runs_dir.glob(f"*/{SWEEP}"))]
    for sweep in sweeps:
        log.info(f"{sweep} is a sweep: plateau-train runs --runs-dir {sweep} lists its runs")
    if not runs and not sweeps:
        log.info(f"there is no run in {runs_dir}: plateau-train makes one")
    return runs


def print_runs(runs: Sequence[ListedRun]) -> None:
    """Print a table of runs, and warn of what is damaged in them."""
    if runs:
        print_table(Table(runs, COLUMNS, drop_order=DROP_ORDER))
    if problems := [printable(problem) for run in runs for problem in run.problems]:
        log.warning("\n".join(problems))


def _read(run: Run) -> ListedRun | None:
    """Read as much of a run as possible; return None for a folder that is not a run."""
    files, problems = run.directory, set[str]()
    facts: dict[str, Any] = {"state": "damaged"}
    with _collect(problems, run):
        if not any(part.exists() for part in (files.config, files.metrics, files.checkpoints)):
            return None
    with _collect(problems, run):
        facts["rule"] = run.settings.schedule_name
        facts["num_seeds"] = len(run.settings.run.seeds)
        facts["dataset"] = run.settings.data.dataset
        facts["num_epochs"] = run.settings.run.epochs
    with _collect(problems, run):
        facts |= _find_metrics(run)
    with _collect(problems, run):
        facts["state"] = run.state
    if problems:
        facts["state"] = "damaged"
    return ListedRun(files.path.name, problems=tuple(sorted(problems)), **facts)


@contextlib.contextmanager
def _collect(problems: set[str], run: Run) -> Iterator[None]:
    """Add to the problems why the block could not read a file, and continue after it."""
    try:
        yield
    except RunError as error:
        problems.update(error.problems)
    except OSError as error:  # a folder without permission, or one that was just removed
        problems.add(f"{run.directory.path} cannot be read: {error.strerror}")


def _find_metrics(run: Run) -> dict[str, Any]:
    """Return the metrics of the best and the last epoch, if an epoch is finished."""
    if not run.records:
        return {}
    last, best = max(history.last_epoch for history in run.histories), best_epoch(run.histories)
    at_last, at_best = (records_at(run.histories, epoch) for epoch in (last, best))
    return {
        "epoch": last,
        "best": fmean(record.score for record in at_best),
        "best_epoch": best,
        "final": fmean(record.score for record in at_last),
        "split": at_last[0].scored_by.removesuffix(" accuracy"),
        "scale": fmean(record.scale for record in at_last),
    }
