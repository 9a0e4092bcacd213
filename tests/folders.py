"""Run folders that are written without training."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers import DROP, record_of, resolve

from plateau_train.config import Resolved
from plateau_train.config.toml import to_toml
from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import DatasetFacts, describe_environment
from plateau_train.run.journal import EpochLines, Journal, RunTask
from plateau_train.run.records import Drop, Ending, RunWarning, Timing

ARRAYS = {
    "params/Dense_0/kernel": np.random.default_rng(0).random((1, 7, 5), np.float32),
    "plateau/count": np.array([3], np.int32),
    "plateau/best_value": np.array([np.inf], np.float32),
}
ENVIRONMENT = describe_environment(
    ["cpu:0"],
    DatasetFacts(
        name="garments", fallback="", sha256="0" * 64, image_shape=(28, 28, 1), class_names=("a",)
    ),
    None,
)


def make_folder(path: Path, **values: str) -> tuple[RunDirectory, Resolved]:
    """Write the folder of a run that has not begun; return it with its settings."""
    directory, resolved = RunDirectory(path), resolve(**values)
    storage.make_folder(path)
    storage.write_text(directory.config, to_toml(*resolved))
    return directory, resolved


def start_journal(path: Path, previous: Checkpoint | None = None) -> Journal:
    """Return the journal of a new run in a folder, or of one that continues."""
    directory, resolved = make_folder(path)
    return Journal(RunTask(resolved, directory, previous), ENVIRONMENT)


def make_lines(epoch: int, **changes: Any) -> EpochLines:
    """Return the lines of an epoch, with a drop in each odd one."""
    record = record_of(epoch, **changes)
    drops: list[Drop | Ending | RunWarning] = (
        [DROP.model_copy(update={"epoch": epoch})] if epoch % 2 else []
    )
    timing = Timing(epoch=epoch, train_seconds=1, evaluate_seconds=2, samples_per_second=None)
    return EpochLines([record], drops, [timing])


def write_epochs(journal: Journal, *epochs: int) -> None:
    """Commit some epochs."""
    for epoch in epochs:
        journal.commit(make_lines(epoch), ARRAYS)


def read_newest(run: RunDirectory) -> Checkpoint:
    """Read the newest checkpoint of a run whose checkpoints are all intact."""
    found, problems = checkpoint.read_newest(run.checkpoints)
    assert found is not None
    assert problems == []
    return found
