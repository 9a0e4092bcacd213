"""The runs of a folder: how far each is, how well it does, and what became of it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

from plateau_train.config import Settings
from plateau_train.errors import RunError
from plateau_train.report.console import Column, Report
from plateau_train.run.directory import LATEST, SWEEP, RunDirectory
from plateau_train.run.records import EpochRecord, best_epoch, read_history, read_notices

State = Literal["running", "done", "failed", "stopped", "damaged"]

# Columns that a narrow terminal goes without, the first one first: the name says most of them.
DROP_ORDER = ("split", "at", "seeds", "scale", "data", "rule", "final", "epochs")

TITLES = (
    "name", "rule", "seeds", "data", "epochs", "best", "at", "final", "split", "scale", "state",
)  # fmt: skip
WORDS = ("name", "rule", "data", "split", "state")  # the others are numbers

UNKNOWN = "-"


class Listed(NamedTuple):
    """A run as far as it can be read, and what cannot."""

    name: str
    state: State
    settings: Settings | None
    records: Sequence[EpochRecord]
    problems: Sequence[str]


def show_runs(runs_dir: Path, report: Report) -> None:
    """Print the runs of a folder as a table, the newest last, and what is damaged in them.

    Of replicas the accuracies and the scale are means.
    """
    runs = list(read_runs(runs_dir))
    sweeps = [RunDirectory(plan.parent) for plan in sorted(runs_dir.glob(f"*/{SWEEP}"))]
    for sweep in sweeps:
        report.say(f"{sweep} is a sweep: plateau-train runs --runs-dir {sweep} lists its runs")
    if not runs:
        if not sweeps:
            report.say(f"there is no run in {runs_dir}: plateau-train makes one")
        return
    rows = [_row(run) for run in runs]
    report.table(
        [
            Column(title, [row[title] for row in rows], is_number=title not in WORDS)
            for title in TITLES
        ],
        drop_order=DROP_ORDER,
    )
    if problems := [problem for run in runs for problem in run.problems]:
        report.warn(*problems)


def read_runs(runs_dir: Path) -> Iterator[Listed]:
    """Yield the runs of a folder by their names, which begin with the time."""
    try:
        paths = sorted(runs_dir.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(
            f"{runs_dir} cannot be listed: {error.strerror}",
            hint="give the folder that the run folders are in: --runs-dir DIR",
        ) from error
    for path in paths:
        if path.name != LATEST and not path.name.startswith("."):
            listed = _read(RunDirectory(path))
            if listed is not None:
                yield listed


def _read(run: RunDirectory) -> Listed | None:
    """Read what can be read of a run; return None for a folder that is none."""
    is_run, settings, records, state, problems = True, None, [], "damaged", []
    with _noting(problems, run):
        is_run = any(part.exists() for part in (run.config, run.metrics, run.checkpoints))
    if not is_run:
        return None
    with _noting(problems, run):
        settings = run.settings().settings
    with _noting(problems, run):
        records = read_history(run.metrics)
    with _noting(problems, run):
        state = state_of(run)
    return Listed(
        run.path.name, "damaged" if problems else state, settings, records, sorted(set(problems))
    )


@contextlib.contextmanager
def _noting(problems: list[str], run: RunDirectory) -> Iterator[None]:
    """Note why something cannot be read, and go on."""
    try:
        yield
    except RunError as error:
        problems += error.problems
    except OSError as error:  # of a folder that is closed to us, or that has just gone
        problems.append(f"{run.path} cannot be read: {error.strerror}")


def state_of(run: RunDirectory) -> State:
    """Tell what became of a run, or is becoming."""
    if run.is_locked():
        return "running"
    if run.summary.exists():
        return "done"
    *_, last = (None, *(notice.event for notice in read_notices(run.events)))
    return "failed" if last == "failed" else "stopped"


def _row(run: Listed) -> dict[str, str]:
    """Write a run as cells under their titles."""
    row = dict.fromkeys(TITLES, UNKNOWN) | {"name": run.name, "state": run.state}
    if run.settings is not None:
        seeds = len(run.settings.run.seeds)
        row |= {
            "rule": run.settings.schedule_name,
            "seeds": f"{seeds}",
            "data": run.settings.data.dataset,
        }
    if run.records:
        last, best = max(record.epoch for record in run.records), best_epoch(run.records)
        scores = {
            epoch: fmean(record.score for record in run.records if record.epoch == epoch)
            for epoch in (best, last)
        }
        scales = [record.scale for record in run.records if record.epoch == last]
        planned = run.settings.run.epochs if run.settings else UNKNOWN
        row |= {
            "epochs": f"{last}/{planned}",
            "best": f"{scores[best]:.4f}",
            "at": f"{best}",
            "final": f"{scores[last]:.4f}",
            "split": run.records[0].scored_by.removesuffix(" accuracy"),
            "scale": f"{fmean(scales):.6g}",
        }
    return row
