"""Decoded data sets on disk, so that only the first start has to decode.

A set is one plain ``.npz`` file: the arrays of its two splits; a JSON ``manifest`` with its name,
source and classes and the fingerprint of what it was made from; and the SHA-256 of all of these.
No function raises: a file that is missing, stale, damaged or foreign counts as not cached, and a
set that cannot be written stays uncached.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plateau_train.data.splits import Dataset, Split

FORMAT = 1
SPLITS = ("train", "test")

# No write takes that long: an older temporary file was left by a process that was killed.
LEFTOVER_SECONDS = 3600


def path_of(folder: Path, name: str, origin: Path) -> Path:
    """Return the file in the cache folder for a set's name and the path that it is made from."""
    digest = hashlib.sha256(f"{name}\n{origin.absolute()}".encode()).hexdigest()
    return folder / f"{origin.stem}-{digest[:16]}.npz"


def fingerprint_of_files(folder: Path) -> str:
    """Return a digest that changes with any file of a prepared set, and with its reader."""
    files: list[tuple[object, ...]] = [(importlib.metadata.version("tensorflow-datasets"),)]
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):  # a dangling link
                stat = os.stat(path)
                files.append((os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(sorted(files, key=str)).encode()).hexdigest()


def read(path: Path, fingerprint: Callable[[], str]) -> Dataset | None:
    """Return the cached set if its file is intact and its fingerprint is the current one."""
    if not os.path.isfile(path):
        return None
    current = fingerprint()
    try:
        # Opened here: numpy.load does not close a file that is not a zip.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            text = arrays["manifest"].item()
            manifest = json.loads(text)
            if (manifest["format"], manifest["fingerprint"]) != (FORMAT, current):
                return None
            train, test = (
                Split(*(arrays[f"{split}/{field}"] for field in Split._fields)) for split in SPLITS
            )
            name, source, class_names = (manifest[key] for key in ("name", "source", "class_names"))
            dataset = Dataset(name, source, tuple(class_names), train, test)
            return dataset if arrays["sha256"].item() == _digest(text, dataset) else None
    except Exception:  # zip, NumPy and JSON raise many kinds of errors for foreign bytes
        return None


def is_writable(path: Path) -> bool:
    """Return whether a set that is decoded now can be cached."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return os.access(path.parent, os.W_OK) and not path.is_dir()


def write(path: Path, fingerprint: str, dataset: Dataset) -> None:
    """Cache a set in place of its previous version, if the disk permits."""
    manifest = {"format": FORMAT, "fingerprint": fingerprint, "name": dataset.name}
    manifest |= {"source": dataset.source, "class_names": dataset.class_names}
    text = json.dumps(manifest).encode()
    arrays: dict[str, Any] = {
        f"{split}/{field}": array
        for split in SPLITS
        for field, array in getattr(dataset, split)._asdict().items()
    }
    temporary = path.with_name(f".plateau-train-{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        try:
            # Without fsync: a file that does not reach the disk whole is noticed when it is read.
            with temporary.open("xb") as file:
                digest = np.array(_digest(text, dataset))
                np.savez(file, allow_pickle=False, manifest=np.array(text), sha256=digest, **arrays)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _digest(text: bytes, dataset: Dataset) -> bytes:
    return hashlib.sha256(text + dataset.sha256().encode()).hexdigest().encode()


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".plateau-train-*.tmp"):
        with contextlib.suppress(OSError):  # another process has removed it
            if path.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                path.unlink()
