"""Whole data sets on disk as they are in memory, so that only the first start has to decode.

One plain ``.npz`` a set, for ``numpy.load``: the arrays of its two splits, as JSON in ``manifest``
what is said of it and the fingerprint of what it was made from, and the SHA-256 of all that.
Nothing here fails: what is missing, stale, damaged or not ours is to be made again, and what cannot
be written is not kept.
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

# Nobody writes for so long: what is older was left by a process that was killed.
LEFTOVER_SECONDS = 3600


def place(folder: Path, name: str, origin: Path) -> Path:
    """Return the file that keeps the set of a name and an origin, whatever state that is in."""
    asked = hashlib.sha256(f"{name}\n{origin.absolute()}".encode())
    return folder / f"{origin.stem}-{asked.hexdigest()[:16]}.npz"


def fingerprint_of_files(folder: Path) -> str:
    """Return what changes with every file of a prepared set, and with what reads them."""
    seen: list[tuple[object, ...]] = [(importlib.metadata.version("tensorflow-datasets"),)]
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):  # a link to nothing
                state = os.stat(path)
                seen.append((os.path.relpath(path, folder), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(repr(sorted(seen, key=str)).encode()).hexdigest()


def read(path: Path, fingerprint: Callable[[], str]) -> Dataset | None:
    """Return the set that was kept, if it is whole and its fingerprint is still the same."""
    if not os.path.isfile(path):
        return None
    current = fingerprint()
    try:
        # Opened here: numpy.load leaves a file open that is no zip.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            text = stored["manifest"].item()
            manifest = json.loads(text)
            if (manifest["format"], manifest["fingerprint"]) != (FORMAT, current):
                return None
            train, test = (
                Split(*(stored[f"{split}/{part}"] for part in Split._fields)) for split in SPLITS
            )
            dataset = Dataset(
                name=manifest["name"],
                source=manifest["source"],
                class_names=tuple(manifest["class_names"]),
                train=train,
                test=test,
            )
            return dataset if stored["sha256"].item() == _digest(text, dataset) else None
    except Exception:  # of foreign bytes zip, NumPy and JSON make whatever they like
        return None


def can_write(path: Path) -> bool:
    """Return whether it is worth while to decode a set for the cache."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return os.access(path.parent, os.W_OK) and not path.is_dir()


def write(path: Path, fingerprint: str, dataset: Dataset) -> None:
    """Keep a set in the place of what was kept of it before, where the disk allows that."""
    text = json.dumps(
        {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "name": dataset.name,
            "source": dataset.source,
            "class_names": dataset.class_names,
        }
    ).encode()
    arrays: dict[str, Any] = {
        f"{split}/{part}": array
        for split in SPLITS
        for part, array in getattr(dataset, split)._asdict().items()
    }
    temporary = path.with_name(f".plateau-train-{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        try:
            # No fsync: what does not reach the disk whole is found out when it is read.
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
        with contextlib.suppress(OSError):  # another process was faster
            if path.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                path.unlink()
