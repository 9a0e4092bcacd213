"""A run, read from its folder: what every command that does not train works with."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from plateau_train.config import Settings
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import Environment, read_environment
from plateau_train.run.history import completed, read_histories
from plateau_train.run.records import (
    TIMINGS,
    EpochRecord,
    History,
    Timing,
    read_history,
    read_notices,
    read_records,
)

State = Literal["running", "done", "failed", "stopped"]


class Run:
    """The settings, histories and environment of a run, each read on first use.

    Every property raises ``RunError`` where its file is missing or damaged.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Find a run; raises ``RunError`` for a folder that is not one."""
        return cls(RunDirectory.open(path))

    @cached_property
    def settings(self) -> Settings:
        return self.directory.settings().settings

    @cached_property
    def records(self) -> list[EpochRecord]:
        """The epochs of all replicas in the order of the file; empty if none is finished."""
        return read_history(self.directory.metrics)

    @cached_property
    def histories(self) -> list[History]:
        """The replicas that have finished epoch 0, each with its epochs and drops."""
        return read_histories(self.directory)

    @cached_property
    def completed(self) -> list[History]:
        """The replicas that have reached the last epoch of the run."""
        return completed(self.histories)

    @property
    def last_epoch(self) -> int:
        return self.completed[0].records[-1].epoch

    @cached_property
    def environment(self) -> Environment:
        return read_environment(self.directory.environment)

    @cached_property
    def timings(self) -> list[Timing]:
        path = self.directory.timings
        return read_records(path, TIMINGS, torn=True) if path.exists() else []

    @property
    def seconds(self) -> float | None:
        """The time that the epochs took; None if it is not recorded."""
        seconds = [timing.train_seconds + timing.evaluate_seconds for timing in self.timings]
        return sum(seconds) if seconds else None

    @property
    def state(self) -> State:
        """What became of the run."""
        if self.directory.is_locked():
            return "running"
        if self.directory.summary.exists():
            return "done"
        *_, last = (None, *(notice.event for notice in read_notices(self.directory.events)))
        return "failed" if last == "failed" else "stopped"
