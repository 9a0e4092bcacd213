"""Data sets as whole uint8 arrays in memory; CSV files with values of a metric.

Imports config and errors only, and no jax. A library that is slow to import is imported when it is
needed, by the functions below.
"""

import hashlib
import logging
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plateau_train import config
from plateau_train.data import cache
from plateau_train.data.splits import Dataset, Progress, Split, split_dataset
from plateau_train.errors import DataUnavailableError

# What --dataset auto loads, and what it loads if that is not available.
AUTO, PREFERRED, BUILT_IN = "auto", "fashion_mnist", "garments"

# Sets that ``start_reading`` reads, by their file in the cache.
_early: dict[Path, Future[Dataset | None]] = {}

log = logging.getLogger("plateau_train")


def load(settings: config.DataSettings, progress: Progress | None = None) -> Dataset:
    """Load a data set, cut to the examples and split as the settings say.

    ``progress`` is called while image files are decoded. Raises ``DataError``. Only ``auto`` falls
    back to the built-in set, and only if Fashion-MNIST is neither prepared nor available for
    download.
    """
    try:
        dataset = _load_whole(settings, progress=progress)
    except DataUnavailableError as error:
        if settings.dataset != AUTO:
            raise
        dataset = replace(_load_built_in(settings), fallback="; ".join(error.problems))
    dataset = split_dataset(dataset, settings)
    if settings.is_custom:
        _warn_of_missing_classes(dataset)
    return dataset


def _warn_of_missing_classes(dataset: Dataset) -> None:
    """Log how many classes the cut left without a training image."""
    num_classes = len(dataset.class_names)
    num_missing = num_classes - len(np.unique(dataset.train.labels))
    if num_missing:
        log.warning(f"{num_missing} of {num_classes} classes have no training image left.")


def prepare(settings: config.DataSettings, manual_dir: Path | None = None) -> str:
    """Prepare a data set from downloaded files or from those in ``manual_dir``.

    Returns a sentence about what was done. Raises ``DataError`` and ``StorageError``.
    """
    if settings.dataset == BUILT_IN:
        return f"{BUILT_IN} is built in and needs no preparation"
    if settings.path is not None and not os.path.exists(settings.path):
        raise DataUnavailableError(
            f"{settings.path} does not exist", hint="give a folder or an .npz file: --dataset PATH"
        )
    if settings.is_custom:
        return f"{settings.dataset} needs no preparation: its images are read where they are"
    from plateau_train.data import tfds

    return tfds.Source(_full_name(settings), settings.data_dir).prepare(manual_dir)


def keep_arrays(arrays: Sequence[Any]) -> str:
    """Keep arrays in memory, and return the name that loads them; raises ``DataError``."""
    from plateau_train.data import arrays as own

    return own.keep_arrays(arrays)


def describe(settings: config.DataSettings, progress: Progress | None = None) -> dict[str, str]:
    """Describe a prepared data set; raises ``DataError``."""
    dataset = _load_whole(settings, download=False, progress=progress)
    # From the counts of the 256 values: the images as floats would take eight times the memory.
    values, counts = np.unique_counts(dataset.train.images)
    mean = np.average(values / 255, weights=counts)
    deviation = math.sqrt(np.average((values / 255 - mean) ** 2, weights=counts))
    named = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    splits = {name: split for name, split in named.items() if split is not None}
    return {
        "name": dataset.name,
        "source": dataset.source,
        **{name: f"{len(split.labels):,} images" for name, split in splits.items()},
        "shape": "x".join(map(str, dataset.image_shape)) + ", 8 bits per value",
        "pixels": f"mean {mean:.5f}, standard deviation {deviation:.5f}, from 0 to 1",
        "classes": f"{len(dataset.class_names)}: {', '.join(dataset.class_names)}",
        "per class": ", ".join(f"{_class_size(split)} in {name}" for name, split in splits.items()),
    }


def _class_size(split: Split) -> str:
    counts = np.unique_counts(split.labels).counts
    low, high = counts.min(), counts.max()
    return f"{low:,} images" if low == high else f"{low:,} to {high:,} images"


def _full_name(settings: config.DataSettings) -> str:
    return PREFERRED if settings.dataset == AUTO else settings.dataset


def _load_whole(
    settings: config.DataSettings, *, download: bool = True, progress: Progress | None = None
) -> Dataset:
    """Load all images, from the cache unless a file of the prepared set has changed since."""
    if settings.is_custom:
        from plateau_train.data import images

        return images.load(settings, progress)
    if settings.dataset == BUILT_IN:
        return _load_built_in(settings)
    folder, path = _places(settings)
    early = _early.pop(path, None)
    dataset = early.result() if early else cache.read(path, cache.fingerprint_of_files(folder))
    if dataset is None:
        from plateau_train.data import tfds

        source = tfds.Source(_full_name(settings), settings.data_dir)
        source.prepare() if download else source.require_prepared()
        log.info("reading %s from %s", source.full_name, settings.data_dir)
        fingerprint = cache.fingerprint_of_files(folder)
        dataset = source.load()
        cache.write(path, fingerprint, dataset)
    return replace(dataset, source=f"{dataset.source} in {settings.data_dir}")


def _places(settings: config.DataSettings) -> tuple[Path, Path]:
    """Return the folder of a prepared set, and its file in the cache."""
    name = _full_name(settings)
    # With all versions and configurations: the name may stand for one that is added later.
    folder = config.expand_home(settings.data_dir) / re.split("[/:]", name)[0]
    return folder, cache.path_of(config.expand_home(settings.cache_dir), name, folder)


def start_reading(settings: config.DataSettings) -> None:
    """Read a prepared set from the cache in another thread, for the next ``load`` of it."""
    if settings.is_custom or settings.dataset == BUILT_IN:
        return
    folder, path = _places(settings)
    read = partial(cache.read, path, cache.fingerprint_of_files(folder))
    _early[path] = ThreadPoolExecutor(1, "reader").submit(read)


def _load_built_in(settings: config.DataSettings) -> Dataset:
    """Draw only as many images of the built-in set as the settings need.

    Drawing all of them takes seconds: they are cached until the code that draws them changes.
    """
    from plateau_train.data import garments

    whole = garments.TRAIN_EXAMPLES, garments.TEST_EXAMPLES
    limits = settings.train_examples, settings.test_examples
    num_train, num_test = (
        min(limit or size, size) for limit, size in zip(limits, whole, strict=True)
    )
    code = Path(garments.__file__)
    fingerprint = hashlib.sha256(code.read_bytes()).hexdigest()
    path = cache.path_of(config.expand_home(settings.cache_dir), BUILT_IN, code)
    is_whole = (num_train, num_test) == whole
    if is_whole and (cached := cache.read(path, fingerprint)) is not None:
        return cached
    log.info("drawing %s built-in garments", f"{num_train + num_test:,}")
    dataset = Dataset(
        name=BUILT_IN,
        source="built in, drawn from a fixed seed",
        class_names=garments.CLASS_NAMES,
        train=Split(*garments.draw(num_train, seed=garments.TRAIN_SEED)),
        test=Split(*garments.draw(num_test, seed=garments.TEST_SEED)),
    )
    if is_whole:
        cache.write(path, fingerprint, dataset)
    return dataset
