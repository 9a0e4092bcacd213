"""A run, read from its folder: what every command that does not train works with."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from plateau_train.config import Settings
from plateau_train.errors import PROGRAM, RunError
from plateau_train.run import checkpoint, journal
from plateau_train.run.checkpoint import Manifest
from plateau_train.run.directory import RunDirectory, read_json
from plateau_train.run.environment import Environment
from plateau_train.run.history import History, completed, early_endings, make_histories
from plateau_train.run.journal import RunTask
from plateau_train.run.records import EpochRecord, Event, Notice, Timing
from plateau_train.run.results import Results

State = Literal["running", "done", "failed", "stopped"]

log = logging.getLogger("plateau_train")


class Run:
    """The settings, histories and environment of a run, each read on first use.

    ``metrics.jsonl``, ``events.jsonl`` and ``timings.jsonl`` are verified against the newest
    checkpoint. Every property raises ``RunError`` where its file is missing or damaged.
    """

    def __init__(self, directory: RunDirectory, manifest: Manifest | None = None) -> None:
        """Read a run as of its newest intact checkpoint, or as of the one of ``manifest``."""
        self.directory = directory
        if manifest is not None:
            self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Find a run; raises ``RunError`` for a folder that is not one."""
        return cls(RunDirectory.open(path))

    @cached_property
    def settings(self) -> Settings:
        return self.directory.settings().settings

    @cached_property
    def environment(self) -> Environment:
        return read_json(self.directory.environment, Environment)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest of the newest intact checkpoint; None for a run without one."""

        def read(path: Path) -> Manifest:
            manifest = checkpoint.read_manifest(path)
            # Either the files are damaged or the checkpoint, whose history may have been cut.
            if any(journal.verify(self.directory, manifest)):
                checkpoint.read_checkpoint(path)
            return manifest

        manifest, problems = checkpoint.read_newest(self.directory.checkpoints, read)
        if problems:
            used = (
                f"No checkpoint of {self.directory} can be read, so its metrics are not verified."
                if manifest is None
                else f"The records of {self.directory} after epoch {manifest.epoch} are not read."
            )
            log.warning("%s", "\n".join((*problems, used)))
        return manifest

    @cached_property
    def records(self) -> list[EpochRecord]:
        return self._read_lines(self.directory.metrics)

    @cached_property
    def events(self) -> list[Event]:
        return self._read_lines(self.directory.events)

    @cached_property
    def timings(self) -> list[Timing]:
        return self._read_lines(self.directory.timings)

    def _read_lines(self, path: Path) -> list[Any]:
        self.directory.require()
        return journal.read_lines(path, self.manifest)

    @cached_property
    def histories(self) -> list[History]:
        """The replicas that have finished epoch 0; raises ``RunError`` where there is none.

        All files are read: a run is damaged if one of them is.
        """
        path, _ = self.directory.metrics, self.timings
        histories = make_histories(self.records, self.events, path)
        if not histories:
            raise RunError(
                f"{path} is empty: no epoch was finished",
                hint=f"{PROGRAM} resume {self.directory} starts it again",
            )
        return histories

    @property
    def completed(self) -> list[History]:
        """The replicas without those that diverged; if all did, those with the most epochs."""
        return completed(self.histories)

    @property
    def has_only_diverged(self) -> bool:
        """Whether none of the replicas that have ended is complete."""
        return not any(each.ending and each.ending.is_complete for each in self.histories)

    @cached_property
    def results(self) -> Results:
        """What the replicas achieved; raises as ``histories``."""
        return Results.of(self.histories)

    @property
    def seconds(self) -> float | None:
        """The duration of all epochs; None if it is not recorded."""
        return sum(timing.seconds for timing in self.timings) or None

    @property
    def state(self) -> State:
        """Whether the run is running, done, failed or stopped."""
        self.directory.require()
        if self.directory.is_locked():
            return "running"
        if self.directory.summary.exists():
            return "done"
        *_, last = ("", *(event.event for event in self.events if isinstance(event, Notice)))
        return "failed" if last == "failed" else "stopped"


def is_over(task: RunTask) -> bool:
    """Return whether all replicas of a run have ended by its checkpoint."""
    if task.previous is None:
        return False
    histories = Run(task.directory, task.previous.manifest).histories
    return all(history.is_over(task.resolved.settings.run.epochs) for history in histories)


def describe_done(task: RunTask) -> str:
    """Return why nothing is left to train of a run that is over."""
    histories = Run(task.directory).completed
    if len(early_endings(histories)) == len(histories):
        return "its rule ended it"
    return f"all of its {task.resolved.settings.run.epochs} epochs are trained"
