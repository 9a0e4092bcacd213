"""Data sets as whole uint8 arrays in memory. Nothing here knows of jax."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from plateau_train import config
from plateau_train.data.splits import Dataset, Split, share_out
from plateau_train.errors import DataUnavailableError

# What --dataset auto looks for, and what it takes where that cannot be had.
AUTO, PREFERRED, BUILT_IN = "auto", "fashion_mnist", "garments"


def load(settings: config.Data, *, say: Callable[[str], None]) -> Dataset:
    """Load the data set that the settings name, shared out as they say.

    ``say`` is told in a sentence what takes long. Raises ``DataError``; only ``auto`` falls back
    to the built-in set, and only where Fashion-MNIST is neither prepared nor to be downloaded.
    """
    if settings.dataset == BUILT_IN:
        return share_out(_built_in(settings, say), settings)
    from plateau_train.data import tfds

    try:
        dataset = tfds.load(_named(settings), settings.data_dir, say=say)
    except DataUnavailableError as error:
        if settings.dataset != AUTO:
            raise
        dataset = replace(_built_in(settings, say), fallback="; ".join(error.problems))
    return share_out(dataset, settings)


def prepare(settings: config.Data, manual_dir: Path | None, *, say: Callable[[str], None]) -> str:
    """Prepare the data set that the settings name; return a sentence about what was done."""
    if settings.dataset == BUILT_IN:
        return f"{BUILT_IN} is built in and needs no preparation"
    from plateau_train.data import tfds

    return tfds.prepare(_named(settings), settings.data_dir, say=say, manual_dir=manual_dir)


def describe(settings: config.Data, *, say: Callable[[str], None]) -> dict[str, str]:
    """Describe the data set that the settings name, which must be prepared."""
    if settings.dataset == BUILT_IN:
        dataset = _built_in(settings, say)
    else:
        from plateau_train.data import tfds

        dataset = tfds.load(_named(settings), settings.data_dir, say=say, download=False)
    pixels = dataset.train.images
    mean = pixels.mean(dtype=np.float64) / 255
    # The standard deviation from the counts of the 256 values, without a copy in floats.
    counts = np.bincount(pixels.reshape(-1), minlength=256)
    deviation = math.sqrt(np.average((np.arange(256) / 255 - mean) ** 2, weights=counts))
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


def _named(settings: config.Data) -> str:
    return PREFERRED if settings.dataset == AUTO else settings.dataset


def _built_in(settings: config.Data, say: Callable[[str], None]) -> Dataset:
    """Draw the built-in set, no more of it than is asked for: its beginning stays the same."""
    from plateau_train.data import garments

    num_train = min(settings.train_examples or garments.TRAIN_EXAMPLES, garments.TRAIN_EXAMPLES)
    num_test = min(settings.test_examples or garments.TEST_EXAMPLES, garments.TEST_EXAMPLES)
    say(f"drawing {num_train + num_test:,} built-in garments")
    train = garments.draw(num_train, seed=garments.TRAIN_SEED)
    test = garments.draw(num_test, seed=garments.TEST_SEED)
    return Dataset(
        name=BUILT_IN,
        source="built in, drawn from a fixed seed",
        class_names=garments.CLASS_NAMES,
        train=Split(*train),
        test=Split(*test),
    )
