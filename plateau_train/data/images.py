"""The user's own images as files: folders of class folders, and images to predict.

All of them are 8-bit, gray or RGB, and of one size. Nothing is converted on the way: what is
different is refused with ``DataError``, which names the file.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from plateau_train import config
from plateau_train.config.files import read_file
from plateau_train.data import arrays, cache
from plateau_train.data.arrays import (
    LAYOUT_HINT,
    MOST_SHOWN,
    SPLITS,
    Parts,
    describe_size,
    require_memory,
)
from plateau_train.data.splits import Dataset, Progress
from plateau_train.errors import DataError, DataUnavailableError

READER = 1  # a version that reads images in another way increments it: cached ones are read again

FORMATS, SUFFIXES = ("PNG", "JPEG"), (".png", ".jpg", ".jpeg")
IGNORED = ("thumbs.db", "desktop.ini")  # what systems leave in folders; hidden files as well
MODES = ("L", "RGB")

MOST_PIXELS = 16_777_216  # of one image: a small file can hold billions of equal ones
MOST_BYTES = 1_000_000_000  # of the file of one image
REPORT_EVERY = 100  # images

FILE_HINT = "save all images as 8-bit gray or RGB, PNG or JPEG, of one size"
PATH_HINT = "give a folder or an .npz file: --dataset PATH"
PERMISSION_HINT = "give a file or a folder that you may read"

# A folder: by split and class, the name, size and time of each file.
Folder = Mapping[str, Mapping[str, Sequence[tuple[str, int, int]]]]


class _UnusableError(Exception):
    """An image file that cannot be used; the message is the problem."""


def load(settings: config.DataSettings, progress: Progress | None) -> Dataset:
    """Load the images of a path, from the cache unless a file has changed, or kept arrays."""
    path, fraction = settings.path, settings.test_fraction
    if path is None:
        return arrays.find_arrays(settings.dataset, fraction)
    try:
        status = path.stat()
        folder = _scan(path) if path.is_dir() else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataUnavailableError(f"{path} does not exist", hint=PATH_HINT) from error
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise DataError(problem, hint=PERMISSION_HINT) from error
    facts = (status.st_size, status.st_mtime_ns) if folder is None else folder
    fingerprint = hashlib.sha256(repr((READER, fraction, facts)).encode()).hexdigest()
    cached = cache.path_of(config.expand_home(settings.cache_dir), "images", path)
    dataset = cache.read(cached, fingerprint)
    if dataset is None:
        if folder is None:
            parts = arrays.read_npz(path, fraction)
        else:
            arrays.check_fraction(str(path), fraction, has_test="test" in folder)
            parts = _read_folder(path, folder, progress)
        dataset = arrays.make_dataset(settings.name, str(path), parts, fraction)
        cache.write(cached, fingerprint, dataset)
    return dataset


def _scan(path: Path) -> Folder:
    """List the images of a folder in sorted order, without reading them.

    Those of a folder without splits are all training images. Raises ``DataError`` for other files
    and folders.
    """
    names = {entry.name for entry in _list(path) if entry.is_dir()}
    if not names & set(SPLITS):
        return {"train": _scan_classes(path)}
    if "train" not in names:
        found = ", ".join(sorted(names & set(SPLITS)))
        problem = f"{path} has a folder {found} and no folder train"
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


def _decode_all(paths: Sequence[Path], progress: Progress | None) -> np.ndarray:
    """Decode files into one array; raises ``DataError`` with the first ones that cannot be used.

    One thread is fast enough: it decodes 10,000 files of 28 x 28 pixels in a second. With more of
    them, small files take longer, because most of their work is in Python.
    """
    images, first = np.empty((0, 0, 0, 0), np.uint8), Path()
    problems: list[str] = []
    for number, path in enumerate(paths, start=1):
        try:
            image = _decode(path)
            if images.size == 0:
                require_memory(str(path.parents[1]), len(paths) * image.size)
                images, first = np.empty((len(paths), *image.shape), np.uint8), path
            if image.shape != images.shape[1:]:
                own, other = describe_size(image), describe_size(images)
                raise _UnusableError(f"{path} is {own}, and {first} is {other}")
            images[number - 1] = image
        except _UnusableError as error:
            problems.append(str(error))
            if len(problems) == MOST_SHOWN:
                break
        if progress is not None and (number % REPORT_EVERY == 0 or number == len(paths)):
            progress(number, len(paths))
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
    return "has transparency" if "transparency" in image.info else ""


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


def take_images(
    value: Any, image_shape: tuple[int, int, int], *, resize: bool
) -> tuple[list[str], UInt8[np.ndarray, "n height width channel"]]:
    """Name the images of an array, and return them in a shape, as ``read_images`` does."""
    array = arrays.as_images_like(value, image_shape)
    names = [f"images[{number}]" for number in range(len(array))]
    if array.shape[1:] == image_shape:
        return names, array
    fitted = (
        _fit(name, image, image_shape, resize=resize)
        for name, image in zip(names, array, strict=True)
    )
    return names, np.stack(list(fitted))


def _read_source(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the pixels of each image of a source."""
    if os.path.isdir(source):
        try:
            paths = [path for path in _files_below(source) if path.suffix.lower() in SUFFIXES]
        except OSError as error:
            problem = f"{source} cannot be read: {error.strerror}"
            raise DataError(problem, hint=PERMISSION_HINT) from error
        if not paths:
            raise DataError(f"{source} has no PNG or JPEG files", hint="give another folder")
    elif source.suffix.lower() == ".npz":
        name, array = arrays.read_array_of_images(source)
        yield from ((f"{source}: {name}[{index}]", image) for index, image in enumerate(array))
        return
    elif not os.path.exists(source):
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
