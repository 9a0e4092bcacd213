"""The user's own images: a folder of class folders, an ``.npz`` file, or arrays in memory.

All of them are 8-bit, gray or RGB, and of one size. Nothing is converted on the way: what is
different is refused with ``DataError``, which names the file or array.
"""

import contextlib
import hashlib
import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from plateau_train import config
from plateau_train.config.files import open_file, read_file
from plateau_train.data import cache
from plateau_train.data.splits import Dataset, Progress, Split, hold_out_test
from plateau_train.errors import ConfigError, DataError, DataUnavailableError

READER = 1  # a version that reads images in another way increments it: cached ones are read again

SPLITS = ("train", "val", "test")
# What an array of images and its labels are called, by split.
KERAS = {split: (f"x_{split}", f"y_{split}") for split in SPLITS}
MEDMNIST = {split: (f"{split}_images", f"{split}_labels") for split in SPLITS}

FORMATS, SUFFIXES = ("PNG", "JPEG"), (".png", ".jpg", ".jpeg")
IGNORED = ("thumbs.db", "desktop.ini")  # what systems leave in folders; hidden files as well
MODES = {"L": "gray", "RGB": "RGB"}

MOST_PIXELS = 16_777_216  # of one image: a small file can hold billions of equal ones
MOST_BYTES = 1_000_000_000  # of the file of one image
MOST_SHOWN = 3  # problems of the same kind
REPORT_EVERY = 100  # images

LAYOUT_HINT = (
    "give a folder with train/CLASS/*.png and test/CLASS/*.png, a folder with CLASS/*.png and "
    "--test-fraction 0.2, or an .npz file with x_train, y_train, x_test and y_test"
)
FRACTION_HINT = "add test images, or hold out some of the others: --test-fraction 0.2"
FILE_HINT = "save all images as 8-bit gray or RGB, PNG or JPEG, of one size"
ARRAY_HINT = "give images as uint8 arrays of shape (n, height, width) or (n, height, width, 1 or 3)"
LABEL_HINT = "give one label per image, as whole numbers, texts or booleans"

# Images and their labels of any kind, by split.
Parts = Mapping[str, tuple[np.ndarray, np.ndarray]]

_kept: dict[str, Dataset] = {}  # the arrays that were given last, by their name


def load(settings: config.DataSettings, progress: Progress | None) -> Dataset:
    """Load the images of a path, from the cache unless a file has changed, or kept arrays."""
    path, fraction = settings.path, settings.test_fraction
    if path is None:
        return _find_arrays(settings.dataset, fraction)
    try:
        status = path.stat()
        folder = _scan(path) if path.is_dir() else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataUnavailableError(f"{path} does not exist", hint=LAYOUT_HINT) from error
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise DataError(problem, hint="give a file or a folder that you may read") from error
    facts = (status.st_size, status.st_mtime_ns) if folder is None else folder
    fingerprint = hashlib.sha256(repr((READER, fraction, facts)).encode()).hexdigest()
    cached = cache.path_of(config.expand_home(settings.cache_dir), "images", path)
    dataset = cache.read(cached, fingerprint)
    if dataset is None:
        if folder is None:
            parts = _read_npz(path, fraction)
        else:
            _check_fraction(str(path), fraction, has_test="test" in folder)
            parts = _read_folder(path, folder, progress)
        dataset = _make_dataset(settings.name, str(path), parts, fraction)
        cache.write(cached, fingerprint, dataset)
    return dataset


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
    dataset = _make_dataset("", "arrays in memory", _take_parts("", members, KERAS), 0)
    name = f"arrays-{dataset.sha256[:12]}"
    _kept.clear()
    _kept[name] = replace(dataset, name=name)
    return name


def read_images(
    sources: Sequence[Path], image_shape: tuple[int, int, int], *, resize: bool
) -> tuple[list[str], UInt8[np.ndarray, "n height width channel"]]:
    """Read images of a shape, and return the name of each and all of them.

    A source is a PNG or JPEG file, a folder whose files are read recursively and in sorted order,
    or an ``.npz`` file: its ``images``, ``x_test`` or ``test_images``, or its only array of uint8.
    Gray images become RGB by repetition, and RGB images gray by the weights of Pillow (ITU-R
    601-2). With ``resize`` images of other sizes are resized with Pillow's bilinear filter, which
    does not keep their aspect; otherwise they are refused. Raises ``DataError``.
    """
    names, images = [], []
    with _bombs_unannounced():
        for source in sources:
            for name, image in _read_source(source):
                names.append(name)
                images.append(_fit(name, image, image_shape, resize=resize))
    return names, np.stack(images) if images else np.empty((0, *image_shape), np.uint8)


def _read_source(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the pixels of each image of a source."""
    if source.is_dir():
        try:
            paths = [path for path in _files_below(source) if path.suffix.lower() in SUFFIXES]
        except OSError as error:
            problem = f"{source} cannot be read: {error.strerror}"
            raise DataError(problem, hint="give a folder that you may read") from error
        if not paths:
            raise DataError(
                f"{source} has no PNG or JPEG files", hint="give a folder that has some"
            )
    elif source.suffix.lower() == ".npz":
        name, array = _read_array_of_images(source)
        yield from ((f"{source}: {name}[{index}]", image) for index, image in enumerate(array))
        return
    elif not source.exists():
        raise DataError(f"{source} does not exist", hint="give image files, folders or .npz files")
    else:
        paths = [source]
    for path in paths:
        try:
            yield str(path), _decode(path)
        except _UnusableError as error:
            raise DataError(str(error), hint=FILE_HINT) from error


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files of a folder and of those in it, in sorted order."""
    for entry in _list(folder):
        if entry.is_dir(follow_symlinks=False):  # a link may lead back
            yield from _files_below(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def _fit(
    name: str, image: np.ndarray, image_shape: tuple[int, int, int], *, resize: bool
) -> np.ndarray:
    """Return an image in a shape; raises ``DataError`` for another size that must stay."""
    height, width, num_channels = image_shape
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    if picture.size != (width, height):
        if not resize:
            raise DataError(
                f"{name} is {picture.width}x{picture.height}, and the run has images of "
                f"{width}x{height}",
                hint="--resize resizes it",
            )
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    picture = picture.convert("L" if num_channels == 1 else "RGB")
    return np.asarray(picture).reshape(image_shape)


def _find_arrays(name: str, fraction: float) -> Dataset:
    if name not in _kept:
        raise DataUnavailableError(
            f"{name} stands for arrays that are not in the memory of this process",
            hint="give them again in Python: dataset=(x_train, y_train, x_test, y_test)",
        )
    _check_fraction(name, fraction, has_test=True)
    return _kept[name]


def _check_fraction(where: str, fraction: float, *, has_test: bool) -> None:
    """Raise where there are no test images, or where there are and others would be held out."""
    if has_test and fraction > 0:
        problem = f"--test-fraction {fraction:g} has no meaning for {where}"
        raise ConfigError(f"{problem}: it has test images", hint="leave it out")
    if not has_test and fraction == 0:
        raise DataError(f"{where} has no test images", hint=FRACTION_HINT)


def _make_dataset(name: str, source: str, parts: Parts, fraction: float) -> Dataset:
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


# A folder: by split and class, the name, size and time of each file.
Folder = Mapping[str, Mapping[str, Sequence[tuple[str, int, int]]]]


def _scan(path: Path) -> Folder:
    """List the images of a folder in sorted order, without reading them.

    Raises ``DataError`` for other files and folders.
    """
    names = {entry.name for entry in _list(path) if entry.is_dir()}
    if not names & set(SPLITS):
        return {"train": _scan_classes(path)}
    if "train" not in names:
        problem = (
            f"{path} has a folder {', '.join(sorted(names & set(SPLITS)))} and no folder train"
        )
        raise DataError(problem, hint=LAYOUT_HINT)
    if unknown := sorted(names - set(SPLITS)):
        problem = f"{path} has the folder {unknown[0]} beside train, which is not test or val"
        raise DataError(problem, hint=LAYOUT_HINT)
    return {split: _scan_classes(path / split) for split in SPLITS if split in names}


def _scan_classes(path: Path) -> dict[str, list[tuple[str, int, int]]]:
    classes: dict[str, list[tuple[str, int, int]]] = {}
    problems: list[str] = []
    for folder in _list(path):
        if not folder.is_dir():
            if folder.name.lower().endswith(SUFFIXES):
                problems.append(f"{folder.path} is not in the folder of a class")
            continue
        files = classes.setdefault(folder.name, [])
        for entry in _list(Path(folder.path)):
            if not entry.is_file():
                problems.append(f"{entry.path} is not a file")
            elif not entry.name.lower().endswith(SUFFIXES):
                problems.append(f"{entry.path} is neither PNG nor JPEG")
            else:
                status = entry.stat()
                files.append((entry.name, status.st_size, status.st_mtime_ns))
        if not files:
            problems.append(f"{folder.path} has no images")
    if not problems and not classes:
        problems.append(f"{path} has no folder for each class")
    if problems:
        raise DataError(*problems[:MOST_SHOWN], hint=LAYOUT_HINT)
    return classes


def _list(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder by name, without hidden files and those that systems leave."""
    with os.scandir(folder) as entries:
        shown = [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in IGNORED
        ]
    return sorted(shown, key=lambda entry: entry.name)


def _read_folder(path: Path, folder: Folder, progress: Progress | None) -> Parts:
    """Decode all images of a folder into one array, and cut it into splits."""
    has_splits = (path / "train").is_dir()
    paths, labels, ends = list[Path](), {}, [0]
    for split, classes in folder.items():
        root = path / split if has_splits else path
        paths += [root / name / file for name, files in classes.items() for file, *_ in files]
        labels[split] = np.repeat(list(classes), [len(files) for files in classes.values()])
        ends.append(len(paths))
    with _bombs_unannounced():
        images = _decode_all(paths, progress)
    return {
        split: (images[start:end], labels[split])
        for split, (start, end) in zip(folder, pairwise(ends), strict=True)
    }


@contextlib.contextmanager
def _bombs_unannounced() -> Iterator[None]:
    """Ignore Pillow's warning of a huge image, which is refused before it is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


class _UnusableError(Exception):
    """An image file that cannot be used; the message is the problem."""


def _decode_all(paths: Sequence[Path], progress: Progress | None) -> np.ndarray:
    """Decode files into one array; raises ``DataError`` with the first ones that cannot be used.

    One thread is fast enough: it decodes 10,000 files of 28 x 28 pixels in a second. With more of
    them, small files take longer, because most of their work is in Python.
    """
    images, first = np.empty((0, 0, 0, 0), np.uint8), Path()
    problems: list[str] = []
    for index, path in enumerate(paths):
        try:
            image = _decode(path)
            if images.size == 0:
                _require_memory(str(path.parents[1]), len(paths) * image.size)
                images, first = np.empty((len(paths), *image.shape), np.uint8), path
            if image.shape != images.shape[1:]:
                sizes = _describe(image.shape), f"{first} is {_describe(images.shape[1:])}"
                raise _UnusableError(f"{path} is {', and '.join(sizes)}")
            images[index] = image
        except _UnusableError as error:
            problems.append(str(error))
            if len(problems) == MOST_SHOWN:
                break
        if progress is not None and (index % REPORT_EVERY == 0 or index + 1 == len(paths)):
            progress(index + 1, len(paths))
    if problems:
        raise DataError(*problems, hint=FILE_HINT)
    return images


def _decode(path: Path) -> np.ndarray:
    """Return the pixels of a file, height x width x channel; raises ``_UnusableError``."""
    try:
        content = read_file(path, MOST_BYTES)
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if problem := _find_problem(image, content):
                raise _UnusableError(f"{path} {problem}")
            pixels = np.asarray(image)
    except _UnusableError:
        raise
    except UnidentifiedImageError as error:
        raise _UnusableError(f"{path} is neither PNG nor JPEG, or damaged") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _UnusableError(f"{path} cannot be read: {reason.splitlines()[0]}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _find_problem(image: Image.Image, content: bytes) -> str:
    """Return why an image that is not decoded yet cannot be used, or an empty text."""
    if image.width * image.height > MOST_PIXELS:
        return f"is {image.width}x{image.height}, more than {MOST_PIXELS:,} pixels"
    if getattr(image, "n_frames", 1) > 1:
        return f"has {getattr(image, 'n_frames', 1)} frames"
    # Pillow reads 16-bit RGB as 8-bit: the depth is the byte after the size.
    if image.format == "PNG" and content[24] == 16:
        return "has 16 bits per value"
    if image.mode not in MODES:
        kinds = {"P": "a palette", "1": "1 bit per value", "CMYK": "CMYK colors"}
        alpha = f"transparency ({image.mode})" if "A" in image.mode else f"the mode {image.mode}"
        return f"has {kinds.get(image.mode, alpha)}"
    return ""


def _describe(shape: tuple[int, ...]) -> str:
    height, width, num_channels = shape
    return f"{width}x{height} {'gray' if num_channels == 1 else 'RGB'}"


def _require_memory(where: str, num_bytes: int) -> None:
    """Raise ``DataError`` for images that do not fit into the memory of the machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > memory:
        sizes = f"{num_bytes / 1e9:,.3g} GB, and this machine has {memory / 1e9:,.3g} GB"
        raise DataError(f"{where} needs {sizes}", hint="give fewer or smaller images")


def _read_npz(path: Path, fraction: float) -> Parts:
    """Read the arrays of a file by the names of Keras or of MedMNIST."""
    with _Archive(path) as archive:
        naming = KERAS if KERAS["train"][0] in archive.names else MEDMNIST
        names = {name for pair in naming.values() for name in pair} & set(archive.names)
        if naming["train"][0] not in names:
            problem = f"{path} has no x_train or train_images, only {_join(archive.names)}"
            raise DataError(problem, hint=LAYOUT_HINT)
        _check_fraction(str(path), fraction, has_test=naming["test"][0] in names)
        members = {name: archive.read(name) for name in sorted(names)}
    return _take_parts(f"{path}: ", members, naming)


def _read_array_of_images(path: Path) -> tuple[str, np.ndarray]:
    """Return the name and the content of the array of images of a file."""
    with _Archive(path) as archive:
        known = [name for name in ("images", "x_test", "test_images") if name in archive.names]
        if not known:
            known = [name for name in archive.names if archive.header(name)[1] == np.uint8]
            if len(known) != 1:
                problem = f"{path} has no images, x_test or test_images, only"
                hint = "name the array of the images images"
                raise DataError(f"{problem} {_join(archive.names)}", hint=hint)
        array = archive.read(known[0])
    return known[0], _as_images(f"{path}: {known[0]}", array)


def _join(names: Sequence[str]) -> str:
    return ", ".join([*islice(names, 8), *["..."] * (len(names) > 8)]) or "nothing"


class _Archive:
    """The arrays of an ``.npz`` file, without Python objects; raises ``DataError``."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, None
        try:
            self._file = open_file(path, limit=1 << 62)
            self._zip = zipfile.ZipFile(self._file)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            self._close()
            reason = getattr(error, "strerror", None) or "it is not an .npz file, or damaged"
            raise DataError(f"{path} cannot be read: {reason}", hint=LAYOUT_HINT) from error
        suffix = ".npy"
        files = (name for name in self._zip.namelist() if name.endswith(suffix))
        self.names = [name.removesuffix(suffix) for name in files]

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return the shape and the type of an array."""
        return self._open(name, _read_header)

    def read(self, name: str) -> np.ndarray:
        """Read an array that fits into the memory."""
        shape, dtype = self.header(name)
        where = f"{self._path}: {name}"
        if dtype.hasobject:
            hint = "give arrays of numbers or texts: array.astype(str) for texts"
            raise DataError(f"{where} has Python objects, which are not read", hint=hint)
        _require_memory(where, math.prod(shape) * dtype.itemsize)
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
        hint = "give arrays of numbers or texts: array.astype(str) for texts"
        raise DataError(f"{name} has Python objects", hint=hint)
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
    (first, other), *_ = ((naming[split][0], part) for split, part in parts.items())
    for split, (array, own) in parts.items():
        if array.shape[1:] != other[0].shape[1:]:
            problem = (
                f"{where}{naming[split][0]} has images of {_describe(array.shape[1:])}, and {first}"
            )
            raise DataError(f"{problem} of {_describe(other[0].shape[1:])}", hint=ARRAY_HINT)
        if own.dtype.kind != other[1].dtype.kind:
            problem = f"{where}{naming[split][1]} has labels of the type {own.dtype}, and those of"
            raise DataError(f"{problem} {first} {other[1].dtype}", hint=LABEL_HINT)
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
        hint = f"{LABEL_HINT}, such as labels.astype(int)"
        raise DataError(f"{name} has the type {array.dtype}", hint=hint)
    return array.astype(np.int64) if kind in "iu" else array
