"""tensorflow-datasets: find, prepare and read a set. No other module imports tensorflow."""

import contextlib
import difflib
import fcntl
import hashlib
import http.client
import io
import json
import logging
import os
import re
import shlex
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Read when tensorflow is imported. oneDNN would print a notice, and nothing here uses it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core.download import download_manager, util

# A proxy: tensorflow itself, which takes 5 s and 650 MB, is imported when an attribute is read.
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from plateau_train.data.splits import Dataset, Split
from plateau_train.errors import DataError, DataUnavailableError, PlateauTrainError, StorageError

# Without a network tensorflow-datasets itself gives up after 204 s; a server that answers at all
# does so well within this time.
PROBE_SECONDS = 5.0

# In each record of a file: its length, and one checksum each of the length and of the content.
TFRECORD_OVERHEAD_BYTES = 16

INFO, FEATURES = "dataset_info.json", "features.json"

# In the data folder: the file that is locked while a set is prepared, and the temporary folder.
LOCK, INCOMPLETE = ".plateau-train.lock", ".plateau-train.incomplete"

log = logging.getLogger("plateau_train")


class _DamageError(DataError):
    """A damaged file of a prepared set; ``_repair_hint`` adds the hint."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} {problem}", hint="")
        self.folder = path.parent


def find(name: str, data_dir: Path) -> str:
    """Return the full name of a prepared set; raises as ``load`` does, except for its images."""
    with _repair_hint(name, data_dir):
        return _prepared_builder(name, data_dir).info.full_name


def load(name: str, data_dir: Path) -> Dataset:
    """Read a prepared set into memory.

    Raises ``DataError`` for a set that is unknown, damaged or not an image classification set, and
    ``DataUnavailableError`` for one that is not prepared.
    """
    with _repair_hint(name, data_dir):
        builder = _prepared_builder(name, data_dir)
        keys = _image_and_label(builder)
        return Dataset(
            name=_name(builder),
            source=f"tensorflow-datasets {builder.info.full_name}",
            class_names=_class_names(builder, keys[1]),
            train=_read(builder, "train", *keys),
            test=_read(builder, "test", *keys),
        )


def prepare(name: str, data_dir: Path, manual_dir: Path | None = None) -> str:
    """Prepare a set from downloaded files or from the original files in ``manual_dir``.

    Returns a sentence about what was done. Each file must have the checksum that
    tensorflow-datasets records for it. Of several processes, one prepares at a time. Raises
    ``DataError``, and ``StorageError`` for a full disk or a folder that is not writable.
    """
    with _repair_hint(name, data_dir):
        builder = _builder(name, data_dir)
        _image_and_label(builder)
        target = f"{builder.info.full_name} in {data_dir}"
        if not _is_prepared(builder):  # without the lock, which a read-only folder does not have
            source = _find_source(builder, data_dir, manual_dir)
            with _explain_failure(builder, target), _incomplete(data_dir.expanduser()) as folder:
                if not _is_prepared(builder):  # by the process that held the lock
                    log.info(source)
                    _prepare_in(folder, name, manual_dir, Path(builder.data_path))
                    return f"prepared {target}"
    return f"{target} is prepared already"


def _prepare_in(folder: Path, name: str, manual_dir: Path | None, target: Path) -> None:
    """Prepare a set in a temporary folder, and move it to its final one.

    A killed process leaves files in the temporary folder only. The files that mnist and
    fashion_mnist unpack have the same names, so the folder has to be empty.
    """
    builder = _builder(name, folder)
    options = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=folder / "downloads", download_config=options)
    target.parent.mkdir(parents=True, exist_ok=True)
    Path(builder.data_path).rename(target)


def _find_source(builder: tfds.core.DatasetBuilder, data_dir: Path, manual_dir: Path | None) -> str:
    """Return a sentence about what a set will be prepared from; raise if that is unavailable."""
    target = f"{builder.info.full_name} in {data_dir}"
    if manual_dir is not None:
        _check_originals(builder, manual_dir)
        return f"preparing {target} from the files in {manual_dir}"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise DataUnavailableError(
            f"{builder.name} cannot be downloaded by a program: download its files by hand",
            hint=f"plateau-train data prepare --dataset {_name(builder)} --from DIR takes them "
            "from DIR",
        )
    # The first file stands for all of them: they usually have the same server.
    url = next(iter(_originals(builder)), None)
    if url is not None and (reason := _probe(url)):
        raise _unavailable(
            builder,
            f"{_name(builder)} is not prepared in {data_dir}; "
            f"it cannot be downloaded from {url}: {reason}",
        )
    return f"downloading and preparing {target} ({builder.info.download_size})"


@contextlib.contextmanager
def _repair_hint(name: str, data_dir: Path) -> Iterator[None]:
    """Add the command that repairs a set to the error about a damaged file of it."""
    try:
        yield
    except _DamageError as error:
        error.hint = (
            f"delete {error.folder} and run plateau-train data prepare --dataset {name} "
            f"--data-dir {shlex.quote(str(data_dir.expanduser()))}"
        )
        raise


@contextlib.contextmanager
def _reading(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Raise ``_DamageError`` for a file that cannot be read, or is damaged in one of these ways."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise _DamageError(path, f"cannot be read: {reason}") from error
    except damage as error:
        raise _DamageError(path, f"is damaged: {_first_line(error)}") from error


@contextlib.contextmanager
def _incomplete(data_dir: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that only this process uses, and remove it at the end.

    If a process is killed, the kernel releases its lock, and the next one removes its folder.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    # The file of the lock is writable, because NFS locks no other. It is never removed: a process
    # that waits for it would then lock a file that no other process can open.
    descriptor = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which prepares a set in %s", data_dir)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = data_dir / INCOMPLETE
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Find a set by its name, without a network."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        return tfds.builder(name, data_dir=data_dir.expanduser())
    except Exception as error:
        # Any error may come from a damaged file of the set.
        plain_name = re.split("[/:]", name)[0]
        for file in sorted((data_dir.expanduser() / plain_name).glob("**/*.json")):
            if tfds.core.Version.is_valid(file.parent.name):
                _check_description(file.parent)
                with _reading(file.parent / INFO, Exception):
                    tfds.builder_from_directory(file.parent)
        if isinstance(error, tfds.core.DatasetNotFoundError):
            near = difflib.get_close_matches(name, [*tfds.list_builders(), "garments"], n=1)
            raise DataError(
                f"there is no data set {name}" + (f", did you mean {near[0]}?" if near else ""),
                hint="use a name of tensorflow-datasets (fashion_mnist, mnist, cifar10, ...), "
                "or garments, which is built in",
            ) from None
        if isinstance(error, AssertionError | ValueError):  # an unknown configuration or version
            raise DataError(
                f"tensorflow-datasets has no {name}: {_first_line(error)}",
                hint=f"use --dataset {plain_name}",
            ) from error
        raise


def _prepared_builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Find a set that can be read now."""
    builder = _builder(name, data_dir)
    _image_and_label(builder)
    if not _is_prepared(builder):
        raise _unavailable(builder, f"{name} is not prepared in {data_dir}")
    return builder


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Return whether the folder of a set exists; raise if the set in it is incomplete."""
    folder = Path(builder.data_path)
    if not os.path.lexists(folder):
        return False
    _check_description(folder)
    return True


def _check_description(folder: Path) -> None:
    """Refuse a prepared set whose description is missing, damaged or of another set.

    tensorflow-datasets itself reads only a part of it if it has the code of the set.
    """
    from_json = tfds.features.FeatureConnector.from_json
    for path, parse in (
        (folder / INFO, dataset_info.read_from_json),
        (folder / FEATURES, lambda path: from_json(json.loads(path.read_text()))),
    ):
        with _reading(path, Exception):  # the parsers raise many kinds of errors
            path.read_text(encoding="utf-8")  # their errors hide those of the system
            parse(path)
    described = dataset_info.read_from_json(folder / INFO)
    # Between the folders of the set and of the version there may be one of the configuration.
    if described.version != folder.name or described.name not in folder.parts[-3:-1]:
        names = "/".join(filter(None, (described.name, described.version)))
        raise _DamageError(folder / INFO, f"is damaged: it describes {names or 'nothing'}")


def _image_and_label(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """Return the keys of the image and of the label; raise if a set has no such pair."""
    info: Any = builder.info
    keys = info.supervised_keys
    if keys is not None and len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        if isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel):
            shape: Any = image.shape
            dtype: Any = image.np_dtype
            if None not in shape and dtype == np.uint8:
                return keys
            raise DataError(
                f"the images of {builder.name} have shape {shape} and type {np.dtype(dtype)}; "
                "they must have one fixed shape and 8 bits",
                hint="use a set whose images all have one size, such as mnist or cifar10",
            )
    raise DataError(
        f"{builder.name} is not an image classification set",
        hint="use a set of images with one label each, such as fashion_mnist, mnist or cifar10",
    )


def _name(builder: tfds.core.DatasetBuilder) -> str:
    """Return the name of a set, with its configuration if it has one."""
    chosen = builder.builder_config
    return f"{builder.name}/{chosen.name}" if chosen else builder.name


def _class_names(builder: tfds.core.DatasetBuilder, label: str) -> tuple[str, ...]:
    features: Any = builder.info.features
    feature = features[label]
    path = Path(feature.get_names_filepath(builder.data_path, label))
    numbers = [str(number) for number in range(feature.num_classes)]
    # There is no such file if the classes have no names.
    if path.exists() or feature.names != numbers:
        with _reading(path, UnicodeDecodeError):
            num_names = len(set(path.read_text(encoding="utf-8").split("\n")) - {""})
        if num_names != feature.num_classes:
            problem = f"is damaged: it names {num_names} classes, there are {feature.num_classes}"
            raise _DamageError(path, problem)
    return tuple(feature.names)


def _read(builder: tfds.core.DatasetBuilder, split: str, image: str, label: str) -> Split:
    """Read all examples of a split in the order of its files."""
    # A build of tensorflow with CUDA would allocate the memory of every GPU.
    tf.config.set_visible_devices([], "GPU")
    folder = Path(builder.data_path)
    if split not in builder.info.splits:
        if not builder.info.splits or any(folder.glob(f"{builder.name}-{split}.*")):
            raise _DamageError(folder / INFO, f"is damaged: it does not name the split {split}")
        raise DataError(
            f"{builder.name} has no split {split}: it has {', '.join(builder.info.splits)}",
            hint="use a set with a train and a test split, such as fashion_mnist or cifar10",
        )
    _check_sizes(builder, split)
    try:
        columns = _columns(builder, split)
    except (tf.errors.OpError, OSError) as error:
        _check_contents(builder, split)
        raise DataError(
            f"the files of {builder.info.full_name} in {folder} cannot be read, though each of "
            f"them can: {_first_line(error)}",
            hint="free memory and start it again",
        ) from error
    return Split(columns[image], columns[label].astype(np.int32))


def _columns(builder: tfds.core.DatasetBuilder, part: Any) -> Any:
    """Read a split or a part of it; tensorflow raises if the number of examples differs."""
    one_file_at_a_time = tfds.ReadConfig(interleave_cycle_length=1)
    read: Any = builder.as_dataset  # its decorator hides the parameters
    return tfds.as_numpy(read(split=part, batch_size=-1, read_config=one_file_at_a_time))


def _shards(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[Path, int]]:
    """Return the files of a split, each with its number of examples in the description."""
    described: Any = builder.info.splits[split]
    info = Path(builder.data_path) / INFO
    with _reading(info, LookupError, ValueError):  # in the template of the file names
        paths = [Path(path) for path in described.filepaths]
    lengths = described.shard_lengths
    # tensorflow-datasets writes no empty file, and would skip one that is described as empty.
    if not lengths or min(lengths) < 1:
        raise _DamageError(info, f"is damaged: it has a file without examples in {split}")
    return list(zip(paths, lengths, strict=True))


def _check_sizes(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Refuse a split with a file that cannot be opened, or whose size cannot be right.

    tensorflow trusts the number of examples: an enormous one aborts the process.
    """
    num_bytes = 0
    for path, num_examples in _shards(builder, split):
        with _reading(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
        if size < num_examples * TFRECORD_OVERHEAD_BYTES:
            raise _DamageError(
                path,
                f"is damaged: it has {size:,} bytes, too few for the {num_examples:,} examples "
                f"in {INFO}",
            )
        num_bytes += size - num_examples * TFRECORD_OVERHEAD_BYTES
    described: Any = builder.info.splits[split]
    if described.num_bytes not in (0, num_bytes):  # 0 is unknown
        _check_contents(builder, split)
        raise _DamageError(
            Path(builder.data_path) / INFO,
            f"is damaged: it records {int(described.num_bytes):,} bytes of examples in {split}, "
            f"but its files have {num_bytes:,}",
        )


def _check_contents(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Read each file of a split by itself, and raise for the first that cannot be read."""
    start = 0
    for path, num_examples in _shards(builder, split):
        stop = start + num_examples
        with _reading(path, tf.errors.OpError):
            _columns(builder, tfds.core.ReadInstruction(split, from_=start, to=stop, unit="abs"))
        start = stop


def _first_line(error: BaseException) -> str:
    """Return the first line of a message, without tensorflow's names of operations in it."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^(\{\{.*?\}\} )?(.*? with iterator: \S+ )?|\.?( \[Op:.*)?$", "", line)


def _unavailable(builder: tfds.core.DatasetBuilder, problem: str) -> DataUnavailableError:
    return DataUnavailableError(
        problem,
        hint=f"plateau-train data prepare --dataset {_name(builder)} downloads it, with --from DIR "
        "it takes the original files from DIR; --dataset garments needs neither",
    )


def _probe(url: str) -> str:
    """Return why a file cannot be downloaded now; empty if its server responds."""
    reasons: list[str] = []

    def request() -> None:
        try:
            address = urllib.parse.quote(url, safe=":/?&=%#")  # some addresses contain spaces
            urllib.request.build_opener().open(address, timeout=PROBE_SECONDS).close()
            reasons.append("")
        except urllib.error.HTTPError as error:
            # Below 500 the server is up; the download itself reports what is wrong.
            reasons.append("" if error.code < 500 else str(error))
        except (OSError, http.client.HTTPException) as error:
            reasons.append(str(getattr(error, "reason", error)))

    # In a thread that can be abandoned: the lookup of a host name has no time limit.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer within {PROBE_SECONDS:g} s"


def _originals(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """Return the size, checksum and name of each original file, by its address."""
    return builder.url_infos or {}


def _check_originals(builder: tfds.core.DatasetBuilder, folder: Path) -> None:
    """Refuse files that are missing or differ from the originals, each by its name."""
    problems = []
    for url, original in _originals(builder).items():
        path = folder / (original.filename or url.rpartition("/")[2])
        if not path.is_file():
            problems.append(f"{path} does not exist")
        elif (size := path.stat().st_size) != original.size:
            problems.append(f"{path} has {size:,} bytes, the original has {int(original.size):,}")
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != original.checksum:
                    problems.append(f"{path} is damaged: its SHA-256 is not the original's")
    if problems:
        raise DataError(
            *problems,
            hint=f"put the original files of {builder.name} into {folder}; "
            f"they come from {next(iter(_originals(builder))).rpartition('/')[0]}",
        )


@contextlib.contextmanager
def _explain_failure(builder: tfds.core.DatasetBuilder, target: str) -> Iterator[None]:
    """Raise the errors of a preparation as ``DataError`` or ``StorageError``."""
    try:
        yield
    except PlateauTrainError:
        raise
    except download_manager.NonMatchingChecksumError as error:
        raise DataError(
            f"a file of {builder.name} is not the original: {_first_line(error)}",
            hint="download it again later, or take the original files with --from DIR",
        ) from error
    except util.DownloadError as error:
        raise _unavailable(builder, f"{builder.name} cannot be downloaded: {error}") from error
    except Exception as error:
        # The error of a disk is the cause of other kinds of errors, or one of tensorflow's.
        for cause in _causes(error):
            if isinstance(cause, tf.errors.OpError) or (
                isinstance(cause, OSError) and (cause.errno or type(cause) is OSError)
            ):
                # tensorflow's begins with a path in the temporary folder.
                reason = getattr(cause, "strerror", None) or _first_line(cause).split("; ")[-1]
                raise StorageError(
                    f"{target} cannot be written: {reason}",
                    hint="choose a folder with free space that you may write to with --data-dir",
                ) from error
        if isinstance(error, OSError):  # requests reports a failed transfer as one without number
            raise _unavailable(builder, f"{builder.name} cannot be downloaded: {error}") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
