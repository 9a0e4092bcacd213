"""tensorflow-datasets: find, prepare and read a set. The only place that imports tensorflow."""

import contextlib
import difflib
import hashlib
import http.client
import io
import logging
import os
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
from google.protobuf import json_format

from plateau_train.data.splits import Dataset, Split
from plateau_train.errors import DataError, DataUnavailableError, StorageError

# Without a network tensorflow-datasets itself gives up after 204 s; a server that answers at all
# does so well within this time.
PROBE_SECONDS = 5.0


def load(
    name: str, data_dir: Path, *, say: Callable[[str], None], download: bool = True
) -> Dataset:
    """Read a set into memory, downloading and preparing it first where it is not prepared.

    Raises ``DataError`` for a set that is unknown, damaged or no image classification, and
    ``DataUnavailableError`` for one that is neither prepared nor to be downloaded.
    """
    builder = _builder(name, data_dir)
    keys = _image_and_label(builder)
    if not builder.is_prepared():
        if not download:
            raise _unavailable(builder, f"{name} is not prepared in {data_dir}")
        prepare(name, data_dir, say=say)
        builder = _builder(name, data_dir)  # the old one knows of no splits
    say(f"reading {builder.info.full_name} from {data_dir}")
    train, test = (_read(builder, split, *keys) for split in ("train", "test"))
    return Dataset(
        name=_name(builder),
        source=f"tensorflow-datasets {builder.info.full_name} in {data_dir}",
        class_names=_class_names(builder, keys[1]),
        train=train,
        test=test,
    )


def prepare(
    name: str, data_dir: Path, *, say: Callable[[str], None], manual_dir: Path | None = None
) -> str:
    """Download a set, or take its original files from ``manual_dir``, and prepare it.

    Returns a sentence about what was done. Each file's checksum is the one that
    tensorflow-datasets pins.
    """
    builder = _builder(name, data_dir)
    _image_and_label(builder)
    place = f"{builder.info.full_name} in {data_dir}"
    if builder.is_prepared():
        return f"{place} is prepared already"
    if manual_dir is not None:
        _check_originals(builder, manual_dir)
        say(f"preparing {place} from the files in {manual_dir}")
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise DataUnavailableError(
            f"{name} cannot be downloaded by a program: its files must be fetched by hand",
            hint=f"plateau-train data prepare --dataset {name} --from DIR takes them from DIR",
        )
    else:
        # The server of the first file stands for them all.
        url = next(iter(_pinned_files(builder)), None)
        if url is not None and (reason := _probe(url)):
            raise _unavailable(
                builder,
                f"{name} is not prepared in {data_dir}",
                f"it cannot be downloaded from {url}: {reason}",
            )
        say(f"downloading and preparing {place} ({builder.info.download_size})")
    with _preparing(builder, place):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir, try_download_gcs=False
            )
        )
    return f"prepared {place}"


def _builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Find a set by its name, without a network."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        return tfds.builder(name, data_dir=data_dir.expanduser())
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name, [*tfds.list_builders(), "garments"], n=1)
        raise DataError(
            f"there is no data set {name}" + (f", did you mean {near[0]}?" if near else ""),
            hint="take a name of tensorflow-datasets (fashion_mnist, mnist, cifar10, ...), "
            "or garments, which is built in",
        ) from None
    except (RuntimeError, json_format.ParseError) as error:
        raise DataError(
            f"the description of {name} in {data_dir} is damaged: {str(error).splitlines()[0]}",
            hint=f"delete {name} in {data_dir} and run plateau-train data prepare --dataset {name}",
        ) from error
    except (AssertionError, ValueError) as error:  # an unknown configuration or version
        raise DataError(
            f"tensorflow-datasets does not know {name}: {str(error).splitlines()[0]}",
            hint=f"take --dataset {name.partition('/')[0].partition(':')[0]}",
        ) from error


def _image_and_label(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """Return the names of the image and of the label, or refuse a set that has no such pair."""
    described: Any = builder.info
    keys = described.supervised_keys
    if keys is not None and len(keys) == 2:
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
    return tuple(features[label].names)


def _read(builder: tfds.core.DatasetBuilder, split: str, image: str, label: str) -> Split:
    """Read a split in the order of its files."""
    import tensorflow as tf

    # A build of tensorflow with CUDA would take the memory of every GPU for itself.
    tf.config.set_visible_devices([], "GPU")
    if split not in builder.info.splits:
        raise DataError(
            f"{builder.name} has no split {split}: it has {', '.join(builder.info.splits)}",
            hint="take a set with a train and a test split, such as fashion_mnist or cifar10",
        )
    one_file_at_a_time = tfds.ReadConfig(interleave_cycle_length=1)
    read: Any = builder.as_dataset  # a decorator of its own hides its parameters
    try:
        columns: Any = tfds.as_numpy(
            read(split=split, batch_size=-1, read_config=one_file_at_a_time)
        )
    except (tf.errors.OpError, OSError) as error:
        raise DataError(
            f"the files of {builder.info.full_name} in {builder.data_path} cannot be read: "
            f"{str(error).splitlines()[0]}",
            hint="delete that folder and run "
            f"plateau-train data prepare --dataset {_name(builder)}",
        ) from error
    return Split(columns[image], columns[label].astype(np.int32))


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
    """Keep tensorflow-datasets quiet while it prepares, and name what goes wrong."""
    from tensorflow_datasets.core.download import download_manager, util

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except download_manager.NonMatchingChecksumError as error:
        raise DataError(
            f"a file of {builder.name} is not the original: {str(error).splitlines()[0]}",
            hint="download it again later, or take the original files with --from DIR",
        ) from error
    except util.DownloadError as error:
        raise _unavailable(builder, f"{builder.name} cannot be downloaded: {error}") from error
    except OSError as error:
        if error.errno is None:  # requests reports a failed transfer as an OSError without number
            raise _unavailable(builder, f"{builder.name} cannot be downloaded: {error}") from error
        raise StorageError(
            f"{place} cannot be written: {error.strerror}",
            hint="give a folder with room that you may write to with --data-dir",
        ) from error
