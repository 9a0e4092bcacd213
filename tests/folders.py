"""Run folders that are written without training, and the records in them."""

import numpy as np

from plateau_train import config
from plateau_train.config import RawValue
from plateau_train.config.toml import to_toml
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import DatasetFacts, describe_environment
from plateau_train.run.journal import EpochLines, Journal
from plateau_train.run.records import Drop, EpochRecord, ObservedValue, Timing

RECORD = EpochRecord(
    epoch=1, step=468, train_loss=0.1 + 0.2, train_accuracy=0.5, test_loss=1.5, test_accuracy=0.25,
    scale=0.5, learning_rate=0.005, wait=1, cooldown=0, best_value=1.0, to_beat=0.9999,
    observations=(ObservedValue(step=200, value=1.0), ObservedValue(step=400, value=1.5)),
)  # fmt: skip
DROP = Drop(
    epoch=11, step=4800, position=10.26, scale_before=1.0, scale_after=0.5,
    learning_rate_before=0.01, learning_rate_after=0.005,
    observed="train loss, mean of 200 steps", value=0.314, best=0.3122, to_beat=0.3121, waited=5,
)  # fmt: skip
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
)


def resolve(**values):
    """Resolve settings from the texts of flags."""
    return config.resolve({key: RawValue(text, "flag") for key, text in values.items()})


def make_folder(path, **values):
    """Write the folder of a run that has not begun; return it with its settings."""
    directory, resolved = RunDirectory(path), resolve(**values)
    storage.make_folder(path)
    storage.write_text(directory.config, to_toml(*resolved))
    return directory, resolved


def start_journal(path, previous=None, **values):
    """Return the journal of a new run in a folder, or of one that continues."""
    directory, resolved = make_folder(path, **values)
    return Journal(directory, resolved, ENVIRONMENT, previous)


def make_lines(epoch, num_replicas=1, **changes):
    """Return the lines of an epoch, with a drop in each odd one."""
    records = [
        RECORD.model_copy(update={"epoch": epoch, "replica": replica, **changes})
        for replica in range(num_replicas)
    ]
    drops = [DROP.model_copy(update={"epoch": epoch})] if epoch % 2 else []
    timing = Timing(epoch=epoch, train_seconds=1, evaluate_seconds=2, samples_per_second=None)
    return EpochLines(records, drops, timing)


def write_epochs(journal, *epochs, **changes):
    """Commit some epochs."""
    for epoch in epochs:
        journal.commit(make_lines(epoch, **changes), ARRAYS)
