"""What a run writes after each epoch, in an order that survives a crash at any point.

The lines of an epoch are appended to the files of ``FILES`` and synced first; then the rename of a
checkpoint commits the epoch. The checkpoint has the length and the SHA-256 of each file, so what
is longer was never committed, and what differs is damaged.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from plateau_train.config import Resolved
from plateau_train.config.files import read_file
from plateau_train.errors import ForeignRunError, RunError
from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import Checkpoint, FileState, Manifest
from plateau_train.run.directory import RunDirectory, read_json
from plateau_train.run.environment import Environment
from plateau_train.run.records import (
    EPOCHS,
    EVENTS,
    FORMAT,
    TIMINGS,
    Drop,
    Ending,
    EpochRecord,
    Notice,
    RunWarning,
    Timing,
    describe_problem,
)

# The files of a run that grow by some lines an epoch, and the type of their lines.
FILES: Mapping[str, TypeAdapter[Any]] = {
    "metrics.jsonl": EPOCHS,
    "events.jsonl": EVENTS,
    "timings.jsonl": TIMINGS,
}


class EpochLines(NamedTuple):
    """The lines of an epoch for each of ``FILES``: a record for each replica active in it."""

    records: list[EpochRecord]
    events: list[Drop | Ending | RunWarning]
    timings: list[Timing]


class RunTask(NamedTuple):
    """A run to train: its settings, its folder, and the checkpoint that it continues from."""

    resolved: Resolved
    directory: RunDirectory
    previous: Checkpoint | None

    @property
    def last_epoch(self) -> int:
        """The epoch of the checkpoint; -1 where there is none."""
        return -1 if self.previous is None else self.previous.manifest.epoch


class Journal:
    """The files of one run while it is trained."""

    def __init__(self, task: RunTask, environment: Environment) -> None:
        """Restore the files of a run to the time of its checkpoint, or to that before epoch 0."""
        resolved, directory, previous = task
        self.directory = directory
        self._manifest = Manifest(
            epoch=task.last_epoch,
            best_epoch=previous.manifest.best_epoch if previous else -1,
            best_score=previous.manifest.best_score if previous else -np.inf,
            settings=resolved.settings,
            origins=resolved.origins,
            environment=environment,
            files={},
        )
        if directory.summary.exists():  # a run that is done continues
            storage.remove_file(directory.summary)
        storage.make_folder(directory.checkpoints)
        for folder in (directory.path, directory.checkpoints):
            storage.remove_leftovers(folder)
        try:
            first = previous and read_json(directory.environment, Environment)
        except RunError:
            first = None
        if first is None:  # or the first environment stays
            text = environment.model_dump_json(indent=2)
            storage.write_text(directory.environment, text + "\n")
        checkpoint.remove_later(directory.checkpoints, task.last_epoch)
        self.has_failed = False  # in this process
        contents = {name: self._cut(name, previous) for name in FILES}
        self._num_bytes = {name: len(content) for name, content in contents.items()}
        self._digests = {name: hashlib.sha256(content) for name, content in contents.items()}
        if previous is not None:
            checkpoint.mend_best(directory.checkpoints, previous.manifest)

    def _cut(self, name: str, previous: Checkpoint | None) -> bytes:
        """Remove what no checkpoint committed; keep notices, which nothing else has."""
        path = self.directory.path / name
        content = _read(path)
        size = 0 if previous is None else previous.manifest.state_of(name).num_bytes
        whole = content[:size]
        if name == "events.jsonl":  # drops, endings and warnings happen again
            later = _parse_events(content[size:])
            whole += storage.as_lines(event for event in later if isinstance(event, Notice))
        if whole != content or not path.exists():
            storage.write_bytes(path, whole)
        return whole

    def commit(self, lines: EpochLines, arrays: Mapping[str, np.ndarray]) -> None:
        """Write an epoch of all replicas; after this only the loss of the disk can undo it."""
        for name, records in zip(FILES, lines, strict=True):
            self._append(name, records)
        files = {
            name: FileState(num_bytes=self._num_bytes[name], sha256=digest.hexdigest())
            for name, digest in self._digests.items()
        }
        update = {"epoch": lines.records[0].epoch, "files": files}
        score = fmean(record.score for record in lines.records)
        if score > self._manifest.best_score:
            update |= {"best_epoch": update["epoch"], "best_score": score}
        self._manifest = self._manifest.model_copy(update=update)
        checkpoint.save_checkpoint(self.directory.checkpoints, Checkpoint(self._manifest, arrays))

    def note(self, event: Notice | Ending | RunWarning) -> None:
        """Write what happens between two epochs."""
        self._append("events.jsonl", [event])
        self.has_failed |= event.event == "failed"

    def _append(self, name: str, records: Sequence[BaseModel]) -> None:
        content = storage.as_lines(records)
        if content:
            storage.append_bytes(self.directory.path / name, content)
            self._num_bytes[name] += len(content)
            self._digests[name].update(content)


def _parse_events(content: bytes) -> list[Notice | Ending]:
    """Return the notices and endings that were written after the last commit.

    What cannot be parsed is left out: a crash may have torn it.
    """
    events = []
    for line in content.splitlines():
        with contextlib.suppress(ValidationError):
            events.append(EVENTS.validate_json(line))
    return [event for event in events if isinstance(event, Notice | Ending)]


RESTORE_HINT = (
    "restore the file from a copy; the checkpoints are untouched, and nothing was deleted"
)


def verify(directory: RunDirectory, manifest: Manifest | None) -> Iterator[str]:
    """Yield what is damaged in the files of a run, as of a checkpoint.

    Raises ``ForeignRunError`` for lines of another version.
    """
    for name in FILES if manifest is not None else ():
        try:
            read_lines(directory.path / name, manifest)
        except ForeignRunError:
            raise
        except RunError as error:
            yield from error.problems


def _read(path: Path) -> bytes:
    """Read a file of ``FILES``, or nothing where there is none."""
    try:
        return read_file(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", hint=RESTORE_HINT) from error


def read_committed(path: Path, manifest: Manifest | None) -> tuple[bytes, bytes]:
    """Read a file of ``FILES``: what the checkpoint committed, and the complete lines after it.

    Without a manifest every complete line counts as committed. Raises ``RunError`` where the file
    is not what was written.
    """
    content = _read(path)
    complete = content[: content.rfind(b"\n") + 1]
    if manifest is None:
        return complete, b""
    state = manifest.state_of(path.name)
    committed = content[: state.num_bytes]
    if hashlib.sha256(committed).hexdigest() != state.sha256:
        what = "was cut" if path.exists() else "is missing"
        if len(committed) == state.num_bytes:
            what = "is damaged"
        raise RunError(
            f"{path} {what}: its first {state.num_bytes:,} bytes are not those at the time of the "
            f"checkpoint of epoch {manifest.epoch}",
            hint=RESTORE_HINT,
        )
    return committed, complete[state.num_bytes :]


def read_lines(path: Path, manifest: Manifest | None) -> list[Any]:
    """Read the committed records of a file of ``FILES``.

    For events also read the notices and endings after them.

    Raises ``RunError`` with the number of a line that is damaged or of another version.
    """
    committed, rest = read_committed(path, manifest)
    lines = committed.split(b"\n")[:-1]  # JSON may hold the other characters that end a line
    records = [_parse_line(path, number, line) for number, line in enumerate(lines, start=1)]
    return records + (_parse_events(rest) if path.name == "events.jsonl" else [])


def _parse_line(path: Path, number: int, line: bytes) -> Any:
    record, written, problem = None, FORMAT, ""
    try:
        record = FILES[path.name].validate_json(line)
        written = record.format
    except ValidationError as error:
        problem = describe_problem(error)
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            written = json.loads(line).get("format", FORMAT)
    if written != FORMAT:
        raise ForeignRunError(
            f"{path} line {number} is of another version: it has format {written}, and this "
            f"version reads {FORMAT}",
            hint="install the version that wrote it",
        )
    if problem:
        raise RunError(f"{path} line {number} is damaged: {problem}", hint=RESTORE_HINT)
    return record
