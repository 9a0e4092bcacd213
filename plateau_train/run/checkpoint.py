"""A run's state on disk: one plain ``.npz`` an epoch, for ``numpy.load``, whole or refused.

It holds the arrays of the state under ``state/`` and, as JSON in ``manifest``, everything else that
the run was until then. The zip's comment is the SHA-256 of all that stands before it: CRCs alone
leave the zip's own headers unguarded.

Not Orbax, which is for sharded states of terabytes on many hosts: this state is small and
replicated, one file holds it, and one rename commits it.
"""

import contextlib
import hashlib
import io
import json
import math
import re
import struct
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from plateau_train.config import Settings
from plateau_train.errors import ForeignCheckpointError, RunError
from plateau_train.run import storage
from plateau_train.run.environment import Environment
from plateau_train.run.records import (
    Drop,
    EpochRecord,
    Event,
    History,
    Timing,
    best_epoch,
    split_replicas,
)

BEST = "best.npz"
KEPT = 2  # the newest, and one before it should the newest be damaged
FORMAT = 1
DIGEST_BYTES = hashlib.sha256().digest_size

# What zip and NumPy raise for bytes that are none of theirs. The checksum lets such bytes through
# only where somebody has written them on purpose.
_MALFORMED = (
    zipfile.BadZipFile, struct.error, tokenize.TokenError, SyntaxError, ValueError, KeyError,
    TypeError, EOFError, RuntimeError,
)  # fmt: skip


class Manifest(BaseModel):
    """Everything of a run but the arrays of its state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    settings: Settings
    origins: dict[str, str]
    environment: Environment
    records: tuple[EpochRecord, ...] = ()
    timings: tuple[Timing, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def epoch(self) -> int:
        return self.records[-1].epoch if self.records else -1

    def at(self, epoch: int) -> list[EpochRecord]:
        """Return the record of each replica that has reached an epoch."""
        return [record for record in self.records if record.epoch == epoch]

    @property
    def final(self) -> list[EpochRecord]:
        return self.at(self.epoch)

    @property
    def drops(self) -> list[Drop]:
        return [event for event in self.events if isinstance(event, Drop)]

    @property
    def best_epoch(self) -> int:
        return best_epoch(self.records)

    @property
    def histories(self) -> list[History]:
        return split_replicas(self.settings.run.seeds, self.records, self.drops)


class Checkpoint(NamedTuple):
    """A run after an epoch: its state's arrays by their names, and all the rest."""

    manifest: Manifest
    arrays: Mapping[str, np.ndarray]


def epoch_path(folder: Path, epoch: int) -> Path:
    """Return where an epoch's checkpoint is kept."""
    return folder / f"epoch-{epoch:06}.npz"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Commit an epoch, link it if it is the best so far, and drop the old ones."""
    manifest, arrays = checkpoint
    path = epoch_path(folder, manifest.epoch)
    buffer = io.BytesIO()
    members = {f"state/{name}": array for name, array in arrays.items()}
    np.savez(
        buffer,
        allow_pickle=False,
        manifest=np.array(manifest.model_dump_json().encode()),
        **members,
    )
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = bytes(DIGEST_BYTES)
    content = buffer.getbuffer()
    content[-DIGEST_BYTES:] = hashlib.sha256(content[:-DIGEST_BYTES]).digest()
    storage.write_bytes(path, content)
    if manifest.best_epoch == manifest.epoch:
        storage.link_file(path, folder / BEST)
    # Those of later epochs, which a resumed run found damaged, stay until they are made again.
    older = [old for old in _epochs(folder) if old < path]
    for old in older[: len(older) - KEPT + 1]:
        storage.remove_file(old)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raises ``RunError`` for one that is not exactly as it was written.

    One that another version has written raises ``ForeignCheckpointError``, which is no damage.
    Nothing is unpickled, and no array is read before its place, size and type are known.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
            raise _unusable(path, "its content does not have the checksum at its end")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _refuse_odd_members(archive)
        with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
            text = loaded["manifest"].item()
            arrays = {
                name.removeprefix("state/"): loaded[name]
                for name in loaded.files
                if name != "manifest"
            }
        written = json.loads(text)["format"]
        if written != FORMAT:
            raise _foreign(path, f"it has format {written}, and this version reads {FORMAT}")
        manifest = Manifest.model_validate_json(text)
        epochs = [record.epoch for record in manifest.records]
        if epochs != sorted(epochs) or set(epochs) != set(range(manifest.epoch + 1)):
            raise _unusable(path, "its history does not count 0, 1, 2, ...")
        if path.name not in (BEST, epoch_path(path.parent, manifest.epoch).name):
            raise _unusable(path, f"it is of epoch {manifest.epoch}, not of that in its name")
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise _foreign(path, f"{problem['msg']} at {place}") from error
    except _MALFORMED as error:
        raise _unusable(path, f"it is no checkpoint: {error}") from error
    return Checkpoint(manifest, arrays)


def _refuse_odd_members(archive: zipfile.ZipFile) -> None:
    """Raise ``ValueError`` for a member that is compressed, or larger or of another type than said.

    Else a small file could ask for any amount of memory.
    """
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry.filename} is compressed")
        with archive.open(entry) as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            size = member.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != entry.file_size:
            raise ValueError(f"{entry.filename} has not the size of its type {dtype} and shape")


def mend_best(folder: Path, manifest: Manifest) -> None:
    """Link the epoch of the manifest as the best, should a crash have come in between."""
    if manifest.best_epoch != manifest.epoch:
        return
    with contextlib.suppress(RunError):
        if read_checkpoint(folder / BEST).manifest.epoch == manifest.epoch:
            return
    storage.link_file(epoch_path(folder, manifest.epoch), folder / BEST)


def candidates(folder: Path) -> list[Path]:
    """List the checkpoints that a run can continue from, the newest first and the best last."""
    best = folder / BEST
    try:
        return [*reversed(_epochs(folder)), *([best] if best.exists() else [])]
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error


def _epochs(folder: Path) -> list[Path]:
    """List the checkpoints of epochs, the oldest first; a copy of another name is the user's."""
    return sorted(
        path for path in folder.glob("epoch-*.npz") if re.fullmatch(r"epoch-\d{6,}", path.stem)
    )


def last_epoch(folder: Path) -> int | None:
    """Return the last epoch that was kept, by its file's name."""
    names = [path.stem for path in candidates(folder) if path.name != BEST]
    return int(names[0].removeprefix("epoch-")) if names else None


def read_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is sound; return the reasons against those after it too.

    Raises ``ForeignCheckpointError`` rather than go back behind another version's.
    """
    reasons = []
    for path in candidates(folder):
        try:
            return read_checkpoint(path), reasons
        except ForeignCheckpointError:
            raise
        except RunError as error:
            reasons += error.problems
    return None, reasons


def _foreign(path: Path, reason: str) -> RunError:
    return ForeignCheckpointError(
        f"{path} is of another version: {reason}", hint="install the version that wrote it"
    )


def _unusable(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path} cannot be used: {reason}",
        hint="restore the file from a copy, or use another checkpoint",
    )
