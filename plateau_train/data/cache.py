"""Decoded data sets on disk, so that only the first start has to decode.

A set is one plain ``.npz`` file: the arrays of its splits, and a JSON ``manifest`` with its
name, source and classes, the fingerprint of what it was made from, and the SHA-256 of the arrays.
No function raises: a file that is missing, stale, damaged or foreign counts as not cached, and a
set that cannot be written stays uncached.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import json
import os
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plateau_train.config.files import is_private
from plateau_train.data.splits import Dataset, Split
from plateau_train.process import npz

FORMAT = 2
SPLITS = ("train", "test", "val")  # the last one only of some sets
DESCRIPTION = ("name", "source", "class_names")

# No write takes that long: an older temporary file was left by a process that was killed.
LEFTOVER_SECONDS = 3600


def path_of(folder: Path, name: str, origin: Path) -> Path:
    """Return the file in the cache folder for a set's name and the path that it is made from."""
    digest = hashlib.sha256(f"{name}\n{origin.absolute()}".encode()).hexdigest()
    return folder / f"{origin.stem}-{digest[:16]}.npz"


def fingerprint_of_files(folder: Path) -> str:
    """Return a digest that changes with any file of a prepared set, and with its reader."""
    files: list[tuple[object, ...]] = [(importlib.metadata.version("tensorflow-datasets"),)]
    for name in glob.glob("**", root_dir=folder, recursive=True, include_hidden=True):
        with contextlib.suppress(OSError):  # a dangling link
            stat = os.stat(folder / name)
            files.append((name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(sorted(files, key=str)).encode()).hexdigest()


def read(path: Path, fingerprint: str) -> Dataset | None:
    """Return the cached set if its file is intact and it has this fingerprint."""
    if not os.path.isfile(path) or not is_private(path.parent):  # a pipe would wait forever
        return None
    try:
        # In one piece: a thread that reads beside imports would wait for the lock of the
        # interpreter at each of many small ones.
        arrays = npz.read_arrays(path.read_bytes())
        text = arrays["manifest"].item()
        splits = {
            split: Split(*(arrays[f"{split}/{field}"] for field in Split._fields))
            for split in SPLITS
            if split != "val" or "val/images" in arrays
        }
        name, source, class_names = (json.loads(text)[key] for key in DESCRIPTION)
        parts = splits["train"], splits["test"], splits.get("val")
        dataset = Dataset(name, source, tuple(class_names), *parts)
        dataset = replace(dataset, digest=dataset.sha256)
        is_sound = text == _manifest(dataset, fingerprint) and _is_image_set(dataset)
        return dataset if is_sound else None
    except Exception:  # zip, NumPy and JSON raise many kinds of errors for foreign bytes
        return None


def write(path: Path, fingerprint: str, dataset: Dataset) -> None:
    """Cache a set in place of its previous version, if the disk permits."""
    arrays: dict[str, Any] = {
        f"{split}/{field}": array
        for split in SPLITS
        if getattr(dataset, split) is not None
        for field, array in getattr(dataset, split)._asdict().items()
    }
    if not is_private(path.parent):
        return
    temporary = path.with_name(f".plateau-train-{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(OSError):
        for leftover in path.parent.glob(".plateau-train-*.tmp"):
            with contextlib.suppress(OSError):  # another process has removed it
                if leftover.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                    leftover.unlink()
        try:
            # Without fsync: a file that does not reach the disk whole is noticed when it is read.
            with temporary.open("xb") as file:
                np.savez(file, manifest=np.array(_manifest(dataset, fingerprint)), **arrays)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _is_image_set(dataset: Dataset) -> bool:
    """Return whether the arrays are images of one shape, each with the number of a class."""
    num_classes = len(dataset.class_names)
    return all(
        images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[1:] == dataset.train.images.shape[1:]
        and labels.dtype == np.int32
        and labels.shape == (len(images),)
        and images.size > 0
        and labels.min() >= 0
        and labels.max() < num_classes
        for images, labels in filter(None, (dataset.train, dataset.test, dataset.val))
    )


def _manifest(dataset: Dataset, fingerprint: str) -> str:
    described = {name: getattr(dataset, name) for name in DESCRIPTION}
    checks = {"format": FORMAT, "fingerprint": fingerprint, "sha256": dataset.sha256}
    return json.dumps(described | checks)
