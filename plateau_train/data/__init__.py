"""Data sets as whole uint8 arrays in memory. Nothing here knows of jax."""

import contextlib
import hashlib
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from plateau_train import config
from plateau_train.data import cache
from plateau_train.data.splits import Dataset, Split, split_dataset
from plateau_train.errors import DataUnavailableError

# What --dataset auto looks for, and what it takes where that cannot be had.
AUTO, PREFERRED, BUILT_IN = "auto", "fashion_mnist", "garments"


def load(settings: config.DataSettings, *, say: Callable[[str], None]) -> Dataset:
    """Load the data set that the settings name, shared out as they say.

    ``say`` is told in a sentence what takes long. Raises ``DataError``; only ``auto`` falls back
    to the built-in set, and only where Fashion-MNIST is neither prepared nor to be downloaded.
    """
    try:
        dataset = _whole(settings, say)
    except DataUnavailableError as error:
        if settings.dataset != AUTO:
            raise
        dataset = replace(_built_in(settings, say), fallback="; ".join(error.problems))
    return split_dataset(dataset, settings)


def prepare(
    settings: config.DataSettings, manual_dir: Path | None, *, say: Callable[[str], None]
) -> str:
    """Prepare the data set that the settings name; return a sentence about what was done."""
    if settings.dataset == BUILT_IN:
        return f"{BUILT_IN} is built in and needs no preparation"
    from plateau_train.data import tfds

    return tfds.prepare(_named(settings), settings.data_dir, say=say, manual_dir=manual_dir)


def describe(settings: config.DataSettings, *, say: Callable[[str], None]) -> dict[str, str]:
    """Describe the data set that the settings name, which must be prepared."""
    dataset = _whole(settings, say, download=False)
    # From the counts of the 256 values, in parts: to count in one go would take eight copies.
    parts = np.array_split(dataset.train.images, 100)
    counts = sum(np.bincount(part.reshape(-1), minlength=256) for part in parts)
    values = np.arange(256) / 255
    mean = np.average(values, weights=counts)
    deviation = math.sqrt(np.average((values - mean) ** 2, weights=counts))
    return {
        "name": dataset.name,
        "source": dataset.source,
        "train": f"{len(dataset.train.labels):,} images",
        "test": f"{len(dataset.test.labels):,} images",
        "shape": "x".join(map(str, dataset.image_shape)) + " of 8 bits",
        "pixels": f"mean {mean:.5f}, standard deviation {deviation:.5f}, of 1",
        "classes": f"{len(dataset.class_names)}: {', '.join(dataset.class_names)}",
        "a class": f"{_range(dataset.train)} in train, {_range(dataset.test)} in test",
    }


def _range(split: Split) -> str:
    """Say how many images a class has."""
    counts = np.unique_counts(split.labels).counts
    low, high = counts.min(), counts.max()
    return f"{low:,} images" if low == high else f"{low:,} to {high:,} images"


def _named(settings: config.DataSettings) -> str:
    return PREFERRED if settings.dataset == AUTO else settings.dataset


def _whole(
    settings: config.DataSettings, say: Callable[[str], None], *, download: bool = True
) -> Dataset:
    """Load the set that is named, from the cache where no file of it has changed since."""
    if settings.dataset == BUILT_IN:
        return _built_in(settings, say)
    dataset = _kept(settings)
    if dataset is None:
        from plateau_train.data import tfds

        name = _named(settings)
        if download:
            tfds.prepare(name, settings.data_dir, say=say)
        say(f"reading {tfds.find(name, settings.data_dir)} from {settings.data_dir}")
        _decode_apart(settings)
        dataset = _kept(settings) or decode(settings)
    return replace(dataset, source=f"{dataset.source} in {settings.data_dir}")


def _place(settings: config.DataSettings) -> tuple[Path, Path]:
    """Return the file of the cache for the set that is named, and the folder that it is of."""
    name = _named(settings)
    # With all versions and configurations: when one is added, the name may mean that one.
    folder = settings.data_dir.expanduser() / re.split("[/:]", name)[0]
    return cache.place(settings.cache_dir.expanduser(), name, folder), folder


def _kept(settings: config.DataSettings) -> Dataset | None:
    path, folder = _place(settings)
    return cache.read(path, partial(cache.fingerprint_of_files, folder))


def decode(settings: config.DataSettings) -> Dataset:
    """Decode the set that is named, which must be prepared, and keep it; raises ``DataError``."""
    from plateau_train.data import tfds

    path, folder = _place(settings)
    before = cache.fingerprint_of_files(folder)
    dataset = tfds.load(_named(settings), settings.data_dir)
    cache.write(path, before, dataset)
    return dataset


def _decode_apart(settings: config.DataSettings) -> None:
    """Decode in a process whose end frees the memory that tensorflow never gives back.

    What it cannot do it leaves: this process tries again, and tells what is wrong.
    """
    if "tensorflow" in sys.modules or not cache.can_write(_place(settings)[0]):
        return
    # -P: what lies in the working directory is none of our modules.
    program = [sys.executable, "-P", "-m", __name__, settings.model_dump_json()]
    nowhere = subprocess.DEVNULL
    with (
        contextlib.suppress(OSError),
        subprocess.Popen(program, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere) as apart,
    ):
        apart.wait()


def _built_in(settings: config.DataSettings, say: Callable[[str], None]) -> Dataset:
    """Draw the built-in set, no more of it than is asked for: its beginning stays the same.

    All of it takes seconds, and is kept in the cache until the code that draws it changes.
    """
    from plateau_train.data import garments

    num_train = min(settings.train_examples or garments.TRAIN_EXAMPLES, garments.TRAIN_EXAMPLES)
    num_test = min(settings.test_examples or garments.TEST_EXAMPLES, garments.TEST_EXAMPLES)
    is_whole = (num_train, num_test) == (garments.TRAIN_EXAMPLES, garments.TEST_EXAMPLES)
    code = Path(garments.__file__)
    fingerprint = hashlib.sha256(code.read_bytes()).hexdigest()
    kept = cache.place(settings.cache_dir.expanduser(), BUILT_IN, code)
    dataset = cache.read(kept, lambda: fingerprint) if is_whole else None
    if dataset is None:
        say(f"drawing {num_train + num_test:,} built-in garments")
        train = garments.draw(num_train, seed=garments.TRAIN_SEED)
        test = garments.draw(num_test, seed=garments.TEST_SEED)
        dataset = Dataset(
            name=BUILT_IN,
            source="built in, drawn from a fixed seed",
            class_names=garments.CLASS_NAMES,
            train=Split(*train),
            test=Split(*test),
        )
        if is_whole:
            cache.write(kept, fingerprint, dataset)
    return dataset
