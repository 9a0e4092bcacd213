"""A data set as whole arrays in memory, and its training, validation and test splits."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from plateau_train import config
from plateau_train.errors import ConfigError

# Called while images are decoded, with the number of those that are done, and of all.
Progress = Callable[[int, int], object]


class Split(NamedTuple):
    images: UInt8[np.ndarray, "n height width channel"]
    labels: Int32[np.ndarray, " n"]

    def take(self, indices: slice | np.ndarray) -> "Split":
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """Images and labels, and where they come from.

    ``val`` are the validation images that the set has of its own, or those that were held out.
    ``fallback`` is the reason why this data set replaces another one, or empty. ``digest`` is that
    of ``sha256`` where it is known already.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    val: Split | None = None
    fallback: str = ""
    digest: str | None = field(default=None, compare=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channel = self.train.images.shape[1:]
        return height, width, channel

    def describe(self) -> str:
        """Return the counts, the shape and the source in one line."""
        splits = {"training": self.train, "validation": self.val, "test": self.test}.items()
        counts = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits if split)
        shape = "x".join(map(str, self.image_shape))
        text = f"{self.name}: {counts} images of {shape}, {len(self.class_names)} classes"
        return f"{text}; {self.source}" + "; NOT Fashion-MNIST" * bool(self.fallback)

    @property
    def sha256(self) -> str:
        """The digest of all images and labels, split by split."""
        if self.digest is not None:
            return self.digest
        digest = hashlib.sha256()
        for name, split in (("train", self.train), ("test", self.test), ("val", self.val)):
            for array in split or ():
                digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def hold_out_test(train: Split, fraction: float) -> tuple[Split, Split]:
    """Return the images without a fraction of each class, and these as test images.

    They do not depend on the run's seed. Their order is kept. Raises ``ConfigError`` where a class
    would have no image left, or no class a test image.
    """
    random = np.random.Generator(np.random.PCG64(0))
    is_test = np.zeros(len(train.labels), bool)
    for number in range(train.labels.max() + 1):
        members = np.flatnonzero(train.labels == number)
        chosen = random.permutation(members)[: round(fraction * len(members))]
        is_test[chosen] = True
        if len(chosen) == len(members):
            problem = f"--test-fraction {fraction:g} holds out all images of a class"
            raise ConfigError(f"{problem} of {len(members):,}", hint="use --test-fraction 0.2")
    if not is_test.any():
        problem = f"--test-fraction {fraction:g} holds out none of {len(is_test):,} images"
        raise ConfigError(problem, hint="use --test-fraction 0.2")
    return train.take(np.flatnonzero(~is_test)), train.take(np.flatnonzero(is_test))


def _take_first(split: Split, limit: int | None) -> Split:
    return split if limit is None else split.take(slice(limit))


def _choose(split: Split, limit: int | None) -> Split:
    """Choose some images: the first ones of a folder would all be of its first classes."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(split.labels))
    return split if limit is None else split.take(np.sort(order[:limit]))


def split_dataset(dataset: Dataset, settings: config.DataSettings) -> Dataset:
    """Cut a data set to the number of examples in the settings, and hold out the validation split.

    The held-out images do not depend on the run's seed, so that runs with different seeds are
    scored on the same ones. Raises ``ConfigError`` if too few images are left.
    """
    cut = _choose if settings.is_custom else _take_first
    train = cut(dataset.train, settings.train_examples)
    test = cut(dataset.test, settings.test_examples)
    num_train, val = len(train.labels), dataset.val
    if val is not None and settings.val_fraction > 0:
        raise ConfigError(
            f"{dataset.name} has {len(val.labels):,} validation images of its own, and "
            f"--val-fraction {settings.val_fraction:g} would hold out others",
            hint="leave out --val-fraction",
        )
    if settings.val_fraction > 0:
        num_val = round(settings.val_fraction * num_train)
        if num_val in (0, num_train):
            problem = f"--val-fraction {settings.val_fraction:g} of {num_train:,} training images"
            amount = "none" if num_val == 0 else "all of them"
            raise ConfigError(f"{problem} holds out {amount}", hint="use --val-fraction 0.1")
        order = np.random.Generator(np.random.PCG64(0)).permutation(num_train)
        # Sorted: the training images keep their order.
        val, train = train.take(np.sort(order[:num_val])), train.take(np.sort(order[num_val:]))
    if settings.batch_size > len(train.labels):
        is_cut = settings.val_fraction > 0
        held_out = f" that --val-fraction {settings.val_fraction:g} leaves" if is_cut else ""
        problem = f"--batch-size {settings.batch_size:,} is larger than the {len(train.labels):,}"
        hint = f"use --batch-size {len(train.labels)} or less"
        raise ConfigError(f"{problem} training images of {dataset.name}{held_out}", hint=hint)
    is_whole = train is dataset.train and test is dataset.test
    return dataset if is_whole else replace(dataset, train=train, test=test, val=val, digest=None)
