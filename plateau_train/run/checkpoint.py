"""Checkpoints: the state of a run after an epoch as one plain ``.npz`` for ``numpy.load``.

A checkpoint has the arrays of the state, with their replica axis, under ``state/`` and everything
else as JSON in ``manifest``. The zip's comment is the SHA-256 of all bytes before it: CRCs
do not cover the headers of the zip. The history is not in it: the manifest has the length and
the SHA-256 of the files that hold the history.

Not Orbax, which is for sharded states of terabytes on many hosts: this state is small and
replicated, one file holds it, and one rename commits it.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import struct
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from plateau_train.config import Settings
from plateau_train.config.files import open_file, read_file
from plateau_train.errors import ForeignRunError, RunError
from plateau_train.process import npz
from plateau_train.run import storage
from plateau_train.run.environment import Environment, available_memory
from plateau_train.run.records import describe_problem

BEST = "best.npz"
KEPT = 2  # the newest, and the one before it in case the newest is damaged
FORMAT = 4
READABLE = range(2, FORMAT + 1)  # before, the state of the plateau rule had fewer arrays
EPOCH_NAME = re.compile(r"epoch-\d{6,}\.npz")
DIGEST_BYTES = hashlib.sha256().digest_size
MANIFEST = "manifest"

Content = TypeVar("Content")

# What zip and NumPy raise for malformed bytes. With a right checksum such bytes exist only where
# somebody wrote them on purpose.
_MALFORMED = (
    zipfile.BadZipFile,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RuntimeError,
)


class FileState(BaseModel):
    """The length in bytes and the SHA-256 of a file at the time of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    num_bytes: int
    sha256: str


class Manifest(BaseModel):
    """Everything in a checkpoint except the arrays."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    epoch: int
    best_epoch: int  # first epoch of the highest mean accuracy over the replicas
    best_score: float
    settings: Settings
    origins: dict[str, str]
    environment: Environment
    files: dict[str, FileState]  # by the names of the journal's table

    def state_of(self, name: str) -> FileState:
        """Return the state of a file; one that an older version did not write is empty."""
        return self.files.get(name, FileState(num_bytes=0, sha256=hashlib.sha256().hexdigest()))


class Checkpoint(NamedTuple):
    """A run after an epoch: the arrays of its state by name, and everything else."""

    manifest: Manifest
    arrays: Mapping[str, np.ndarray]


def epoch_path(folder: Path, epoch: int) -> Path:
    """Return the path of an epoch's checkpoint."""
    return folder / f"epoch-{epoch:06}.npz"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Commit an epoch, link it if it is the best so far, and remove old checkpoints."""
    manifest, arrays = checkpoint
    path = epoch_path(folder, manifest.epoch)
    buffer = io.BytesIO()
    text = np.array(manifest.model_dump_json().encode())
    members = {f"state/{name}": array for name, array in arrays.items()}
    npz.write_arrays(buffer, {MANIFEST: text, **members}, comment=bytes(DIGEST_BYTES))
    # Released before anything can fail: in the traceback of an error, a view of the buffer would
    # crash the garbage collection of Python 3.12.1 (CPython issue 111049).
    with buffer.getbuffer() as content:
        content[-DIGEST_BYTES:] = hashlib.sha256(content[:-DIGEST_BYTES]).digest()
    storage.write_bytes(path, buffer.getvalue())
    if manifest.best_epoch == manifest.epoch:
        storage.link_file(path, folder / BEST)
    # Later ones, which are damaged, stay until they are written again.
    older = [old for old in _epochs(folder) if old < path]
    for old in older[: len(older) - KEPT + 1]:
        storage.remove_file(old)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raises ``RunError`` unless it is exactly as it was written.

    A checkpoint of another version raises ``ForeignRunError``. Nothing is unpickled, and
    no array is read before its offset, size and type are known.
    """
    with _explained(path):
        content = read_file(path, available_memory())
        if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
            raise _unusable(path, "its content does not match the checksum at its end")
        arrays = npz.read_arrays(content)
        manifest = _parse(path, arrays.pop(MANIFEST).item())
        state = {name.removeprefix("state/"): array.copy() for name, array in arrays.items()}
        return Checkpoint(manifest, state)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint without its arrays; raises as ``read_checkpoint``.

    Only the CRC of the manifest is verified.
    """
    with _explained(path), open_file(path, available_memory()) as file:
        return _parse(path, npz.read_array(file, MANIFEST).item())


def _parse(path: Path, text: bytes) -> Manifest:
    written = json.loads(text)["format"]
    if written not in READABLE:
        known = f"{READABLE[0]} to {FORMAT}"
        raise _foreign(path, f"it has format {written}, and this version reads {known}")
    manifest = Manifest.model_validate_json(text)
    if path.name not in (BEST, epoch_path(path.parent, manifest.epoch).name):
        raise _unusable(path, f"it is of epoch {manifest.epoch}, not of the one in its name")
    return manifest


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise what can go wrong with a checkpoint as ``RunError``."""
    try:
        yield
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ValidationError as error:
        raise _foreign(path, describe_problem(error)) from error
    except _MALFORMED as error:
        raise _unusable(path, f"it is not a checkpoint: {error}") from error


def mend_best(folder: Path, manifest: Manifest) -> None:
    """Link the epoch of the manifest as the best one, if a crash prevented that."""
    if manifest.best_epoch != manifest.epoch:
        return
    with contextlib.suppress(RunError):
        if read_checkpoint(folder / BEST).manifest.epoch == manifest.epoch:
            return
    storage.link_file(epoch_path(folder, manifest.epoch), folder / BEST)


def remove_later(folder: Path, epoch: int) -> None:
    """Remove the intact checkpoints of later epochs, before their history is cut.

    Damaged ones stay until they are written again.
    """
    for path in candidates(folder):
        with contextlib.suppress(RunError):
            if read_manifest(path).epoch > epoch:
                read_checkpoint(path)
                storage.remove_file(path)


def candidates(folder: Path) -> list[Path]:
    """Return the checkpoints that a run can continue from, the newest first, the best last."""
    best = folder / BEST
    try:
        return [*reversed(_epochs(folder)), *([best] if best.exists() else [])]
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error


def _epochs(folder: Path) -> list[Path]:
    """Return the checkpoints of epochs, the oldest first; other names are the user's files."""
    names = os.listdir(folder) if folder.exists() else []
    return sorted(folder / name for name in names if EPOCH_NAME.fullmatch(name))


def last_epoch(folder: Path) -> int | None:
    """Return the last epoch that has a checkpoint, by its file name."""
    names = [path.stem for path in candidates(folder) if path.name != BEST]
    return int(names[0].removeprefix("epoch-")) if names else None


def read_newest(
    folder: Path, read: Callable[[Path], Content] = read_checkpoint
) -> tuple[Content | None, list[str]]:
    """Read the newest intact checkpoint; also return the problems of those that are newer.

    Raises ``ForeignRunError`` instead of skipping a checkpoint of another version.
    """
    problems = []
    for path in candidates(folder):
        try:
            return read(path), problems
        except ForeignRunError:
            raise
        except RunError as error:
            problems += error.problems
    return None, problems


def _foreign(path: Path, reason: str) -> RunError:
    return ForeignRunError(
        f"{path} is of another version: {reason}", hint="install the version that wrote it"
    )


def _unusable(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path} cannot be used: {reason}",
        hint="restore the file from a copy, or use another checkpoint",
    )
