"""tensorflow-datasets: find, prepare and read a set. The only place that imports tensorflow."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Read when tensorflow is imported, which tensorflow-datasets puts off until it needs it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "TF_ENABLE_ONEDNN_OPTS", "0"
)  # it would announce itself; nothing here uses it

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info

from plateau_train.data.splits import Dataset, Split
from plateau_train.errors import (
    DataError,
    DataUnavailableError,
    PlateauTrainError,
    StorageError,
)

# Without a network tensorflow-datasets itself gives up after 204 s; a server that answers at all
# does so well within this time.
PROBE_SECONDS = 5.0

# The length of a record, and a checksum each for that and for the record itself.
TFRECORD_OVERHEAD_BYTES = 16

INFO, FEATURES = "dataset_info.json", "features.json"

# In the folder of the data: held by the process that prepares a set, and what it works in.
LOCK, WORKPLACE = ".plateau-train.lock", ".plateau-train.incomplete"


class _DamageError(Exception):
    """A file of a prepared set and what is wrong with it; ``_mending`` adds what to do."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} {problem}")
        self.folder = path.parent


def find(name: str, data_dir: Path) -> str:
    """Return the full name of a prepared set; raises what ``load`` raises, but for its images."""
    with _mending(name, data_dir):
        return _prepared(name, data_dir).info.full_name


def load(name: str, data_dir: Path) -> Dataset:
    """Read a prepared set into memory.

    Raises ``DataError`` for a set that is unknown, damaged or no image classification, and
    ``DataUnavailableError`` for one that is not prepared.
    """
    with _mending(name, data_dir):
        builder = _prepared(name, data_dir)
        keys = _image_and_label(builder)
        class_names = _class_names(builder, keys[1])
        train, test = (_read(builder, split, *keys) for split in ("train", "test"))
    return Dataset(
        name=_name(builder),
        source=f"tensorflow-datasets {builder.info.full_name}",
        class_names=class_names,
        train=train,
        test=test,
    )


def prepare(
    name: str, data_dir: Path, *, say: Callable[[str], None], manual_dir: Path | None = None
) -> str:
    """Download a set, or take its original files from ``manual_dir``, and prepare it.

    Returns a sentence about what was done. Each file's checksum is the one that
    tensorflow-datasets pins. Where several processes prepare at once, one does at a time. Raises
    ``StorageError`` for a disk that is full or a folder that may not be written to.
    """
    with _mending(name, data_dir):
        builder = _builder(name, data_dir)
        _image_and_label(builder)
        place = f"{builder.info.full_name} in {data_dir}"
        prepared_already = f"{place} is prepared already"
        if _is_prepared(builder):  # which needs no lock: a folder that is read-only has none
            return prepared_already
        source = _source(builder, data_dir, manual_dir)
        with _preparing(builder, place), _workplace(data_dir.expanduser(), say) as workplace:
            if _is_prepared(builder):  # by a process that was waited for
                return prepared_already
            say(source)
            # In a folder of its own and without those of other times: a killed process leaves
            # nothing elsewhere, and the files that mnist and fashion_mnist unpack have one name.
            at_work = _builder(name, workplace)
            with contextlib.redirect_stdout(io.StringIO()):
                at_work.download_and_prepare(
                    download_dir=workplace / "downloads",
                    download_config=tfds.download.DownloadConfig(
                        manual_dir=manual_dir, try_download_gcs=False
                    ),
                )
            folder = Path(builder.data_path)
            folder.parent.mkdir(parents=True, exist_ok=True)
            Path(at_work.data_path).rename(folder)
    return f"prepared {place}"


def _source(builder: tfds.core.DatasetBuilder, data_dir: Path, manual_dir: Path | None) -> str:
    """Say what a set will be prepared from, or refuse where that cannot be had."""
    place = f"{builder.info.full_name} in {data_dir}"
    if manual_dir is not None:
        _check_originals(builder, manual_dir)
        return f"preparing {place} from the files in {manual_dir}"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise DataUnavailableError(
            f"{builder.name} cannot be downloaded by a program: its files must be fetched by hand",
            hint=f"plateau-train data prepare --dataset {_name(builder)} --from DIR takes them "
            "from DIR",
        )
    # The server of the first file stands for them all.
    url = next(iter(_pinned_files(builder)), None)
    if url is not None and (reason := _probe(url)):
        raise _unavailable(
            builder,
            f"{_name(builder)} is not prepared in {data_dir}",
            f"it cannot be downloaded from {url}: {reason}",
        )
    return f"downloading and preparing {place} ({builder.info.download_size})"


@contextlib.contextmanager
def _mending(name: str, data_dir: Path) -> Iterator[None]:
    """Add to the name of a damaged file the command that mends the set."""
    try:
        yield
    except _DamageError as error:
        raise DataError(
            str(error),
            hint=f"delete {error.folder} and run plateau-train data prepare --dataset {name} "
            f"--data-dir {shlex.quote(str(data_dir.expanduser()))}",
        ) from error


@contextlib.contextmanager
def _workplace(data_dir: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Yield a new folder, in which only this process is at work, and remove it in the end.

    The kernel releases the lock of a process that is killed; its folder is removed by the next.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    # A file of its own, because NFS locks nothing that is not open for writing. It stays: to
    # remove it while another process waits for it would lock out nobody.
    descriptor = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which prepares a set in {data_dir}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = data_dir / WORKPLACE
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
        # Whatever it is: the files themselves say whether one of them is the reason.
        plain_name = re.split("[/:]", name)[0]
        for file in sorted((data_dir.expanduser() / plain_name).glob("**/*.json")):
            if tfds.core.Version.is_valid(file.parent.name):
                _check_description(file.parent)
                _check_alone(file.parent)
        if isinstance(error, tfds.core.DatasetNotFoundError):
            near = difflib.get_close_matches(name, [*tfds.list_builders(), "garments"], n=1)
            raise DataError(
                f"there is no data set {name}" + (f", did you mean {near[0]}?" if near else ""),
                hint="take a name of tensorflow-datasets (fashion_mnist, mnist, cifar10, ...), "
                "or garments, which is built in",
            ) from None
        if isinstance(error, AssertionError | ValueError):  # an unknown configuration or version
            raise DataError(
                f"tensorflow-datasets does not know {name}: {_first_line(error)}",
                hint=f"take --dataset {plain_name}",
            ) from error
        raise


def _prepared(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Find a set that can be read at once."""
    builder = _builder(name, data_dir)
    _image_and_label(builder)
    if not _is_prepared(builder):
        raise _unavailable(builder, f"{name} is not prepared in {data_dir}")
    return builder


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Return whether a set is there, and refuse one that is there in part."""
    folder = Path(builder.data_path)
    if not os.path.lexists(folder):
        return False
    _check_description(folder)
    return True


def _check_description(folder: Path) -> None:
    """Refuse a prepared set with a description that is missing, damaged or another's.

    Of a set that it has the code of, tensorflow-datasets itself reads only a part of it.
    """
    from_json = tfds.features.FeatureConnector.from_json
    for path, parse in (
        (folder / INFO, dataset_info.read_from_json),
        (folder / FEATURES, lambda path: from_json(json.loads(path.read_text()))),
    ):
        try:
            path.read_text(encoding="utf-8")  # the parsers do not tell what the system says
            parse(path)
        except OSError as error:
            raise _DamageError(path, f"cannot be read: {error.strerror}") from error
        except Exception as error:  # the parsers raise much, and read nothing but this file
            raise _DamageError(path, f"is damaged: {_first_line(error)}") from error
    described = dataset_info.read_from_json(folder / INFO)
    # Between the folders of the set and of the version there may be one of the configuration.
    if described.version != folder.name or described.name not in folder.parts[-3:-1]:
        names = "/".join(filter(None, (described.name, described.version)))
        raise _DamageError(folder / INFO, f"is damaged: it describes {names or 'nothing'}")


def _check_alone(folder: Path) -> None:
    """Refuse a description that is readable, and from which no set can be made."""
    try:
        tfds.builder_from_directory(folder)
    except Exception as error:
        raise _DamageError(folder / INFO, f"is damaged: {_first_line(error)}") from error


def _image_and_label(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """Return the names of the image and of the label, or refuse a set that has no such pair."""
    described: Any = builder.info
    keys = described.supervised_keys
    if keys is not None and len(keys) == 2 and all(key in described.features for key in keys):
        image, label = (described.features[key] for key in keys)
        if isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel):
            shape: Any = image.shape
            dtype: Any = image.np_dtype
            if None not in shape and dtype == np.uint8:
                return keys
            raise DataError(
                f"the images of {builder.name} have shape {shape} and type {np.dtype(dtype)}; "
                "they must have one fixed shape and 8 bits",
                hint="take a set whose images all have one size, such as mnist or cifar10",
            )
    raise DataError(
        f"{builder.name} is no image classification set",
        hint="take a set of images with one label each, such as fashion_mnist, mnist or cifar10",
    )


def _name(builder: tfds.core.DatasetBuilder) -> str:
    """Return the name that finds the set again, with its configuration if it has one."""
    chosen = builder.builder_config
    return f"{builder.name}/{chosen.name}" if chosen else builder.name


def _class_names(builder: tfds.core.DatasetBuilder, label: str) -> tuple[str, ...]:
    features: Any = builder.info.features
    feature = features[label]
    path = Path(feature.get_names_filepath(builder.data_path, label))
    numbers = [str(number) for number in range(feature.num_classes)]
    # A set whose classes have no names has no such file.
    if path.exists() or feature.names != numbers:
        try:
            names = set(path.read_text(encoding="utf-8").split("\n")) - {""}
        except OSError as error:
            raise _DamageError(path, f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise _DamageError(path, f"is damaged: {error}") from error
        if len(names) != feature.num_classes:
            problem = f"is damaged: it names {len(names)} classes, there are {feature.num_classes}"
            raise _DamageError(path, problem)
    return tuple(feature.names)


def _read(builder: tfds.core.DatasetBuilder, split: str, image: str, label: str) -> Split:
    """Read a split in the order of its files, each example that the description promises."""
    import tensorflow as tf

    # A build of tensorflow with CUDA would take the memory of every GPU for itself.
    tf.config.set_visible_devices([], "GPU")
    folder = Path(builder.data_path)
    if split not in builder.info.splits:
        if not builder.info.splits or any(folder.glob(f"{builder.name}-{split}.*")):
            raise _DamageError(folder / INFO, f"is damaged: it does not name the split {split}")
        raise DataError(
            f"{builder.name} has no split {split}: it has {', '.join(builder.info.splits)}",
            hint="take a set with a train and a test split, such as fashion_mnist or cifar10",
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
    """Read a split, or a part of it; tensorflow raises where the number of examples differs."""
    one_file_at_a_time = tfds.ReadConfig(interleave_cycle_length=1)
    read: Any = builder.as_dataset  # a decorator of its own hides its parameters
    return tfds.as_numpy(read(split=part, batch_size=-1, read_config=one_file_at_a_time))


def _shards(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[Path, int]]:
    """Return the files of a split and how many examples each has, as the description says."""
    described: Any = builder.info.splits[split]
    info = Path(builder.data_path) / INFO
    try:
        paths = [Path(path) for path in described.filepaths]
    except (LookupError, ValueError) as error:  # of the template of their names
        raise _DamageError(info, f"is damaged: {_first_line(error)}") from error
    lengths = described.shard_lengths
    # tensorflow-datasets writes no empty file, and would leave out one that is described as empty.
    if not lengths or min(lengths) < 1:
        raise _DamageError(info, f"is damaged: it has a file without examples in {split}")
    return list(zip(paths, lengths, strict=True))


def _check_sizes(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Refuse a split with a file that cannot be opened or whose size cannot be right.

    tensorflow trusts the number of examples: it aborts the process when that is enormous.
    """
    shards = _shards(builder, split)
    num_bytes = 0
    for path, num_examples in shards:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise _DamageError(path, f"cannot be read: {error.strerror}") from error
        if size < num_examples * TFRECORD_OVERHEAD_BYTES:
            raise _DamageError(
                path,
                f"is damaged: it has {size:,} bytes, too few for the {num_examples:,} examples "
                f"that {INFO} promises",
            )
        num_bytes += size - num_examples * TFRECORD_OVERHEAD_BYTES
    described: Any = builder.info.splits[split]
    if described.num_bytes not in (0, num_bytes):  # 0 is unknown
        _check_contents(builder, split)
        raise _DamageError(
            Path(builder.data_path) / INFO,
            f"is damaged: it promises {int(described.num_bytes):,} bytes of examples in {split}, "
            f"where its files have {num_bytes:,}",
        )


def _check_contents(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Read each file of a split by itself, and refuse the first that cannot be read."""
    import tensorflow as tf

    start = 0
    for path, num_examples in _shards(builder, split):
        stop = start + num_examples
        try:
            _columns(builder, tfds.core.ReadInstruction(split, from_=start, to=stop, unit="abs"))
        except (tf.errors.OpError, OSError) as error:
            raise _DamageError(path, f"is damaged: {_first_line(error)}") from error
        start = stop


def _first_line(error: BaseException) -> str:
    """Return the first line of a message, without the operations that tensorflow names in it."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^(\{\{.*?\}\} )?(.*? with iterator: \S+ )?|\.?( \[Op:.*)?$", "", line)


def _unavailable(builder: tfds.core.DatasetBuilder, *problems: str) -> DataUnavailableError:
    return DataUnavailableError(
        "; ".join(problems),
        hint=f"plateau-train data prepare --dataset {_name(builder)} downloads it, with --from DIR "
        "it takes the original files from DIR; --dataset garments needs neither",
    )


def _probe(url: str) -> str:
    """Return why a file cannot be downloaded now, or nothing where its server offers it."""
    reasons: list[str] = []

    def ask() -> None:
        try:
            address = urllib.parse.quote(url, safe=":/?&=%#")  # some of the pinned ones hold spaces
            urllib.request.build_opener().open(address, timeout=PROBE_SECONDS).close()
            reasons.append("")
        except urllib.error.HTTPError as error:
            # Below 500 the server is there; what it has against this request is for TFDS to see.
            reasons.append("" if error.code < 500 else str(error))
        except (OSError, http.client.HTTPException) as error:
            reasons.append(str(getattr(error, "reason", error)))

    # A look-up of a name knows no time limit, hence a thread that can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer within {PROBE_SECONDS:g} s"


def _pinned_files(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """Return the size, checksum and name of each original file by its address."""
    return builder.url_infos or {}


def _check_originals(builder: tfds.core.DatasetBuilder, folder: Path) -> None:
    """Refuse, by name, a file that is missing or is not the one whose checksum is pinned."""
    problems = []
    for url, pinned in _pinned_files(builder).items():
        path = folder / (pinned.filename or url.rpartition("/")[2])
        if not path.is_file():
            problems.append(f"{path} does not exist")
        elif (size := path.stat().st_size) != pinned.size:
            problems.append(f"{path} has {size:,} bytes, the original has {int(pinned.size):,}")
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != pinned.checksum:
                    problems.append(f"{path} is damaged: its SHA-256 is not the original's")
    if problems:
        raise DataError(
            *problems,
            hint=f"put the original files of {builder.name} into {folder}; "
            f"they come from {next(iter(_pinned_files(builder))).rpartition('/')[0]}",
        )


@contextlib.contextmanager
def _preparing(builder: tfds.core.DatasetBuilder, place: str) -> Iterator[None]:
    """Name what goes wrong while a set is prepared."""
    import tensorflow as tf
    from tensorflow_datasets.core.download import download_manager, util

    try:
        yield
    except (PlateauTrainError, _DamageError):
        raise
    except download_manager.NonMatchingChecksumError as error:
        raise DataError(
            f"a file of {builder.name} is not the original: {_first_line(error)}",
            hint="download it again later, or take the original files with --from DIR",
        ) from error
    except util.DownloadError as error:
        raise _unavailable(builder, f"{builder.name} cannot be downloaded: {error}") from error
    except Exception as error:
        # The refusal of a disk arrives inside errors of other kinds, or as one of tensorflow.
        for cause in _causes(error):
            if isinstance(cause, tf.errors.OpError) or (
                isinstance(cause, OSError) and (cause.errno or type(cause) is OSError)
            ):
                # That of tensorflow puts a path before it, in our own folder.
                reason = getattr(cause, "strerror", None) or _first_line(cause).split("; ")[-1]
                raise StorageError(
                    f"{place} cannot be written: {reason}",
                    hint="give a folder with room that you may write to with --data-dir",
                ) from error
        if isinstance(error, OSError):  # requests reports a failed transfer as one without number
            raise _unavailable(builder, f"{builder.name} cannot be downloaded: {error}") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
