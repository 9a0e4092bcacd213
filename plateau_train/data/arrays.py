"""Images and labels as arrays: of an ``.npz`` file, given in Python, or decoded; their classes.

What is no uint8 image of one size, and no label, is refused with ``DataError``, which names it.
"""

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from plateau_train.config.files import open_file
from plateau_train.data.splits import Dataset, Split, hold_out_test
from plateau_train.errors import ConfigError, DataError, DataUnavailableError

SPLITS = ("train", "val", "test")
# What an array of images and its labels are called, by split.
KERAS = {split: (f"x_{split}", f"y_{split}") for split in SPLITS}
MEDMNIST = {split: (f"{split}_images", f"{split}_labels") for split in SPLITS}

MOST_SHOWN = 3  # problems of the same kind

LAYOUT_HINT = (
    "give a folder with train/CLASS/*.png and test/CLASS/*.png, a folder with CLASS/*.png and "
    "--test-fraction 0.2, or an .npz file with x_train, y_train, x_test and y_test"
)
FRACTION_HINT = "add test images, or hold out some of the others: --test-fraction 0.2"
ARRAY_HINT = "give images as uint8 arrays of shape (n, height, width) or (n, height, width, 1 or 3)"
LABEL_HINT = "give one label per image, as whole numbers, texts or booleans"
OBJECT_HINT = "give arrays of numbers or texts: array.astype(str) for texts"

# Images and their labels of any kind, by split.
Parts = Mapping[str, tuple[np.ndarray, np.ndarray]]

_kept: dict[str, Dataset] = {}  # the arrays that were given last, by their name


def keep_arrays(arrays: Sequence[Any]) -> str:
    """Keep arrays in memory in place of those before, and return the name that loads them.

    They are x_train, y_train, x_test and y_test, or the same with x_val and y_val in the middle.
    The name is derived from their SHA-256. Raises ``DataError``.
    """
    splits = {4: ("train", "test"), 6: SPLITS}.get(len(arrays))
    if splits is None:
        raise DataError(
            f"a data set is 4 or 6 arrays, got {len(arrays)}",
            hint="give (x_train, y_train, x_test, y_test), or with x_val and y_val after y_train",
        )
    names = [name for split in splits for name in KERAS[split]]
    members = {name: _as_array(name, array) for name, array in zip(names, arrays, strict=True)}
    dataset = make_dataset("", "arrays in memory", _take_parts("", members, KERAS), 0)
    name = f"arrays-{dataset.sha256[:12]}"
    _kept.clear()
    _kept[name] = replace(dataset, name=name)
    return name


def find_arrays(name: str, fraction: float) -> Dataset:
    """Return the arrays of a name; raises ``DataUnavailableError`` unless they are kept."""
    if name not in _kept:
        raise DataUnavailableError(
            f"{name} stands for arrays that are not in the memory of this process",
            hint="give them again in Python: dataset=(x_train, y_train, x_test, y_test)",
        )
    check_fraction(name, fraction, has_test=True)
    return _kept[name]


def check_fraction(where: str, fraction: float, *, has_test: bool) -> None:
    """Raise where there are no test images, or where there are and others would be held out."""
    if has_test and fraction > 0:
        problem = f"--test-fraction {fraction:g} has no meaning for {where}"
        raise ConfigError(f"{problem}: it has test images", hint="leave it out")
    if not has_test and fraction == 0:
        raise DataError(f"{where} has no test images", hint=FRACTION_HINT)


def make_dataset(name: str, source: str, parts: Parts, fraction: float) -> Dataset:
    """Number the classes, and hold out test images if there are none."""
    class_names, labels = _number_classes({split: part[1] for split, part in parts.items()})
    splits = {split: Split(part[0], labels[split]) for split, part in parts.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out_test(splits["train"], fraction)
    return Dataset(name, source, class_names, splits["train"], splits["test"], splits.get("val"))


def _number_classes(
    labels: Mapping[str, np.ndarray],
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the names of the classes of the training images in order, and labels as int32.

    Raises ``DataError`` for a class that is only in another split, and for fewer than two.
    """
    values, indices = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
    names = list(map(str, values.tolist()))
    order = range(len(names))
    if values.dtype.kind == "U" and all(name.isdecimal() for name in names):
        order = sorted(order, key=lambda index: (int(names[index]), names[index]))
    numbers = np.empty(len(names), np.int32)
    numbers[list(order)] = np.arange(len(names))
    ends = [0, *accumulate(map(len, labels.values()))]
    numbered = {
        split: numbers[indices[start:end]]
        for split, (start, end) in zip(labels, pairwise(ends), strict=True)
    }
    names = [names[index] for index in order]
    known = set(np.unique(numbered["train"]).tolist())
    problems = [
        f"class {names[number]} is in {split}, and not in train"
        for split, own in numbered.items()
        for number in np.unique(own).tolist()
        if number not in known
    ]
    if problems:
        hint = "give training images of each class, or leave it out"
        raise DataError(*problems[:MOST_SHOWN], hint=hint)
    if len(names) < 2:
        raise DataError(f"there is only one class, {names[0]}", hint="give images of two or more")
    for name in names:
        if not _is_text(name):
            raise DataError(f"the name of class {name} is not UTF-8", hint="give it another name")
    return tuple(names), numbered


def _is_text(name: str) -> bool:
    """Return whether a name can be written: that of a file may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_memory(where: str, num_bytes: int) -> None:
    """Raise ``DataError`` for images that do not fit into the memory of the machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > memory:
        sizes = f"{num_bytes / 1e9:,.3g} GB, and this machine has {memory / 1e9:,.3g} GB"
        raise DataError(f"{where} needs {sizes}", hint="give fewer or smaller images")


def describe_size(images: np.ndarray) -> str:
    """Return the size and the kind of an image, or of each of several."""
    height, width, num_channels = images.shape[-3:]
    return f"{width}x{height} {'gray' if num_channels == 1 else 'RGB'}"


def read_npz(path: Path, fraction: float) -> Parts:
    """Read the arrays of a file by the names of Keras or of MedMNIST."""
    with _Archive(path) as archive:
        naming = KERAS if KERAS["train"][0] in archive.names else MEDMNIST
        names = {name for pair in naming.values() for name in pair} & set(archive.names)
        if naming["train"][0] not in names:
            problem = f"{path} has no x_train or train_images, only {_join(archive.names)}"
            raise DataError(problem, hint=LAYOUT_HINT)
        check_fraction(str(path), fraction, has_test=naming["test"][0] in names)
        members = {name: archive.read(name) for name in sorted(names)}
    return _take_parts(f"{path}: ", members, naming)


def read_array_of_images(path: Path) -> tuple[str, np.ndarray]:
    """Return the name and the content of the array of images of a file."""
    with _Archive(path) as archive:
        known = [name for name in ("images", "x_test", "test_images") if name in archive.names]
        if not known:
            known = [name for name in archive.names if archive.header(name)[1] == np.uint8]
            if len(known) != 1:
                problem = f"{path} has no images, x_test or test_images, only"
                hint = "give a file with one of them"
                raise DataError(f"{problem} {_join(archive.names)}", hint=hint)
        array = archive.read(known[0])
    return known[0], _as_images(f"{path}: {known[0]}", array)


def as_images_like(value: Any, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return an array of images, or of one, with all four axes; raises ``DataError``.

    Three axes are many gray images if those have the expected size; else they are one image if
    the last axis has 1 or 3 channels.
    """
    array = _as_array("images", value)
    is_one = array.ndim == 2
    if array.ndim == 3 and array.shape[1:] != image_shape[:2]:
        is_one = array.shape[2] in (1, 3)
    return _as_images("images", array[None] if is_one else array)


def _join(names: Sequence[str]) -> str:
    return ", ".join([*islice(names, 8), *["..."] * (len(names) > 8)]) or "nothing"


class _Archive:
    """The arrays of an ``.npz`` file, without Python objects; raises ``DataError``."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, None
        try:
            self._file = open_file(path, limit=1 << 62)
            self._zip = zipfile.ZipFile(self._file)
        except Exception as error:  # what is not a zip file has many kinds of errors
            self._close()
            reason = getattr(error, "strerror", None) or "it is not an .npz file, or damaged"
            raise DataError(f"{path} cannot be read: {reason}", hint=LAYOUT_HINT) from error
        files = map(Path, self._zip.namelist())
        self.names = [str(file.with_suffix("")) for file in files if file.suffix == ".npy"]

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return the shape and the type of an array."""
        return self._open(name, _read_header)

    def read(self, name: str) -> np.ndarray:
        """Read an array that fits into the memory."""
        shape, dtype = self.header(name)
        where = f"{self._path}: {name}"
        if dtype.hasobject:
            raise DataError(f"{where} has Python objects, which are not read", hint=OBJECT_HINT)
        require_memory(where, math.prod(shape) * dtype.itemsize)
        return self._open(name, lambda file: np.lib.format.read_array(file, allow_pickle=False))

    def _open(self, name: str, read: Any) -> Any:
        try:
            with self._zip.open(f"{name}.npy") as file:
                return read(file)
        except Exception as error:  # zip, zlib and NumPy raise many kinds for damaged files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            problem = f"{self._path}: {name} cannot be read: {reason}"
            raise DataError(problem, hint="write the file again with numpy.savez") from error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _as_array(name: str, value: Any) -> np.ndarray:
    """Return a list or an array of any library as an array, not copied if possible."""
    try:
        array = np.asarray(value)
    except Exception as error:  # rows of different lengths, or a library's own error
        problem = f"{name} is not an array: {str(error).partition(chr(10))[0]}"
        raise DataError(problem, hint=ARRAY_HINT) from error
    if array.dtype.hasobject:
        raise DataError(f"{name} has Python objects", hint=OBJECT_HINT)
    return array


def _take_parts(
    where: str, members: Mapping[str, np.ndarray], naming: Mapping[str, tuple[str, str]]
) -> Parts:
    """Return the images and labels of each split; raises ``DataError`` for what cannot be used."""
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split, (images, labels) in naming.items():
        if images not in members and labels not in members:
            continue
        for name, other in ((images, labels), (labels, images)):
            if name not in members:
                raise DataError(f"{where}it has {other} and no {name}", hint=f"add {name}")
        array = _as_images(f"{where}{images}", members[images])
        own = _as_labels(f"{where}{labels}", members[labels])
        if len(own) != len(array):
            problem = f"{where}{labels} has {len(own):,} labels for the {len(array):,} images of"
            raise DataError(f"{problem} {images}", hint="give one label per image")
        parts[split] = array, own
    first, first_labels = parts["train"]
    for split, (array, own) in parts.items():
        if array.shape[1:] != first.shape[1:]:
            problem = f"{where}{naming[split][0]} has images of {describe_size(array)}, and"
            problem += f" {naming['train'][0]} of {describe_size(first)}"
            raise DataError(problem, hint="give images of one size, and all of them gray or RGB")
        if own.dtype.kind != first_labels.dtype.kind:
            problem = f"{where}{naming[split][1]} has the type {own.dtype}, and"
            problem += f" {naming['train'][1]} {first_labels.dtype}"
            raise DataError(problem, hint=LABEL_HINT)
    return parts


def _as_images(name: str, array: np.ndarray) -> np.ndarray:
    """Return images with an axis of channels; raises ``DataError`` for what are no images."""
    if array.dtype != np.uint8:
        hints = {
            "f": "if they are from 0 to 1, give (255 * images).round().astype('uint8')",
            "b": "give 255 * images.astype('uint8')",
            "i": "if they are from 0 to 255, give images.astype('uint8')",
        }
        hint = hints.get(array.dtype.kind.replace("u", "i"), ARRAY_HINT)
        raise DataError(f"{name} has the type {array.dtype}, not uint8", hint=hint)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        hint = ARRAY_HINT
        if array.ndim == 4 and array.shape[1] in (1, 3):
            hint = "put the channels last: images.transpose(0, 2, 3, 1)"
        raise DataError(f"{name} has the shape {array.shape}", hint=hint)
    if array.size == 0:
        raise DataError(f"{name} has no images: its shape is {array.shape}", hint=ARRAY_HINT)
    return array


def _as_labels(name: str, array: np.ndarray) -> np.ndarray:
    """Return labels in one axis; raises ``DataError`` for other shapes and types."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = f"{LABEL_HINT}; labels.argmax(axis=1) turns one-hot rows into numbers"
        raise DataError(f"{name} has the shape {array.shape}", hint=hint)
    kind = array.dtype.kind
    if kind == "f" and np.isnan(array).any():
        number = np.flatnonzero(np.isnan(array))[0]
        raise DataError(f"{name} has no label for image {number}: it is NaN", hint=LABEL_HINT)
    if kind not in "biuU":
        hint = f"{LABEL_HINT}, such as labels.astype({'str' if kind == 'S' else 'int'})"
        raise DataError(f"{name} has the type {array.dtype}", hint=hint)
    return array.astype(np.int64) if kind in "iu" else array
