"""Metrics as event files of TensorBoard, with the names that Keras's callback gives them."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c

from plateau_train.config import SETTINGS, Settings, as_text
from plateau_train.run.history import History
from plateau_train.run.reader import Run

# One name whatever the time: an export replaces the earlier one.
FILE = "events.out.tfevents.0.plateau-train"
VERSION = "brain.Event:2"
MARK = VERSION.encode()
FOLDERS = {"train": "train", "val": "validation", "test": "test"}  # of the splits


def export(run: Run) -> dict[str, bytes]:
    """Return an event file for each split of each seed, and one for the seed itself."""
    clock = _Clock(run)
    files = {}
    for history in run.histories:
        seed = f"seed-{history.seed}"
        files[f"{seed}/{FILE}"] = clock.record(_describe(history, run.settings))
        for folder, scalars in _split_scalars(history).items():
            files[f"{seed}/{folder}/{FILE}"] = clock.record(scalars)
    return files


class _Clock:
    """The time at the end of each epoch, in seconds: the start of the run and the durations.

    The run starts when its ``environment.json`` is written. Pauses of the run are left out.
    """

    def __init__(self, run: Run) -> None:
        path = run.directory.environment
        self._start = end = path.stat().st_mtime if path.exists() else 0.0
        self._ends = {}
        for timing in run.timings:
            self._ends[timing.epoch] = end = end + timing.seconds

    def record(self, summaries: Iterable[tuple[int, Any]]) -> bytes:
        """Return the content of an event file: summaries, each with the epoch as its step."""
        events = [Event(wall_time=self._start, file_version=VERSION)]
        for epoch, content in summaries:
            time = self._ends.get(epoch, self._start)
            events.append(Event(wall_time=time, step=epoch, summary=content))
        return b"".join(_frame(event.SerializeToString()) for event in events)


def _frame(content: bytes) -> bytes:
    """Return a record of a TFRecord file: length, checksum, content, checksum."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(content))


def _split_scalars(history: History) -> Mapping[str, list[tuple[int, Any]]]:
    """Return the metrics of each split by its folder; the rate and its scale are in train."""
    folders: dict[str, list[tuple[int, Any]]] = {}
    for record in history.records:
        for split, loss, accuracy in record.scores():
            values = {"loss": loss, "accuracy": accuracy}
            if split == "train":
                values |= {"learning_rate": record.learning_rate, "scale": record.scale}
            folders.setdefault(FOLDERS[split], []).extend(
                (record.epoch, summary.scalar(f"epoch_{name}", value))
                for name, value in values.items()
            )
    return folders


def _describe(history: History, settings: Settings) -> Iterator[tuple[int, Any]]:
    """Yield the settings as hyperparameters, and the drops as text."""
    values = {
        setting.key: _plain(setting.effective_value(settings))
        for setting in SETTINGS
        if setting.affects_results
    }
    # Without the experiment of tensorboardX, which would be that of all runs of a folder:
    # TensorBoard then derives the hyperparameters and metrics from all of them.
    _, start, end = summary.hparams(values | {"seed": history.seed}, {})
    yield 0, start
    for epoch, drops in groupby(history.drops, attrgetter("epoch")):
        yield epoch, summary.text("drops", "\n\n".join(drop.describe() for drop in drops))
    if history.ending and history.ending.is_complete:
        yield history.last_epoch, end


def _plain(value: object) -> object:
    """Return a value of a type that hyperparameters have; lists are written as text."""
    return value if value is None or isinstance(value, bool | int | float) else as_text(value)
