"""tensorflow-datasets: find, prepare and read a set. No other module imports tensorflow."""

import contextlib
import fcntl
import hashlib
import http.client
import io
import logging
import os
import pickle
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import requests

# Read when tensorflow is imported. oneDNN would print a notice, and nothing here uses it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow_datasets as tfds
from tensorflow_datasets.core import visibility
from tensorflow_datasets.core.download import download_manager, util

# A proxy: tensorflow itself, which takes 5 s and 650 MB, is imported when an attribute is read.
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from plateau_train.config import did_you_mean, expand_home
from plateau_train.data.splits import Dataset, Split
from plateau_train.errors import (
    PROGRAM,
    DataError,
    DataUnavailableError,
    PlateauTrainError,
    StorageError,
)
from plateau_train.process.children import command_of

# The list of community sets is in Google Cloud: without a network, each look at it takes many
# attempts to authenticate, and prints them.
visibility.set_availables([visibility.DatasetType.TFDS_PUBLIC])

# Without a network tensorflow-datasets itself gives up after 204 s; a server that answers at all
# does so well within this time.
PROBE_SECONDS = 5.0

# In the data folder: the file that is locked while a set is prepared, and the temporary folder.
LOCK, INCOMPLETE = ".plateau-train.lock", ".plateau-train.incomplete"

log = logging.getLogger("plateau_train")


class Source:
    """An image classification set of tensorflow-datasets and its data folder.

    Needs no network. Raises ``DataError`` for a set that is unknown, damaged or not an image
    classification set.
    """

    def __init__(self, name: str, data_dir: Path) -> None:
        self.name, self.data_dir, self.root = name, data_dir, expand_home(data_dir)
        self.builder = self._find_builder()
        self.full_name = self.builder.info.full_name
        self.folder = Path(self.builder.data_path)
        self.image, self.label = self._image_and_label()
        # The size, checksum and name of each original file, by its address.
        self.originals: dict[str, Any] = self.builder.url_infos or {}

    def prepare(self, manual_dir: Path | None = None) -> str:
        """Prepare the set from downloaded files or from the original files in ``manual_dir``.

        Returns a sentence about what was done. Each file must have the checksum that
        tensorflow-datasets records for it. Only one process prepares at a time. Raises
        ``DataError``, and ``StorageError`` for a full disk or a folder that is not writable.
        """
        target = f"{self.full_name} in {self.data_dir}"
        if manual_dir is not None:
            self._check_originals(manual_dir)
        if not self._is_prepared():  # without the lock, which a read-only folder cannot have
            if manual_dir is None:
                self._require_downloadable()
                size = self.builder.info.download_size
                message = f"downloading and preparing {target} ({size})"
            else:
                message = f"preparing {target} from the files in {manual_dir}"
            with self._explained(), _incomplete(self.root) as folder:
                if not self._is_prepared():  # by the process that held the lock
                    log.info(message)
                    # The files that mnist and fashion_mnist unpack have the same names: the folder
                    # has to be empty. A process that is killed leaves files only in it.
                    builder = tfds.builder(self.name, data_dir=folder)
                    with contextlib.redirect_stdout(io.StringIO()):
                        builder.download_and_prepare(
                            download_dir=folder / "downloads",
                            download_config=tfds.download.DownloadConfig(
                                manual_dir=manual_dir, try_download_gcs=False
                            ),
                        )
                    self.folder.parent.mkdir(parents=True, exist_ok=True)
                    Path(builder.data_path).rename(self.folder)
                    return f"prepared {target}"
        return f"{target} is already prepared"

    def require_prepared(self) -> None:
        """Raise ``DataUnavailableError`` unless the set is prepared."""
        if not self._is_prepared():
            raise self._unavailable(f"{self.name} is not prepared in {self.data_dir}")

    def load(self) -> Dataset:
        """Read the prepared set in another process, because tensorflow never frees its memory.

        Raises ``DataError`` if that process ends without a result, for lack of memory or because of
        damage that tensorflow does not notice.
        """
        read_end, write_end = os.pipe()  # separate from what libraries print
        command = command_of("plateau_train.data.decoder", write_end, self.name, self.data_dir)
        pipe, null, result = subprocess.PIPE, subprocess.DEVNULL, None
        with (
            tempfile.TemporaryFile() as log_file,
            subprocess.Popen(
                command, stdin=pipe, stdout=null, stderr=log_file, pass_fds=[write_end]
            ) as process,
        ):
            os.close(write_end)
            with open(read_end, "rb") as file, contextlib.suppress(EOFError, pickle.PickleError):
                result = pickle.load(file)
            code = process.wait()
            log_file.seek(0)
            *_, last_line = ("", *log_file.read().decode(errors="replace").splitlines())
        if result is None:
            reason = f"the process that reads it ended with exit code {code}"
            hint = f"free memory; {self._repair(self.folder)}"
            if code >= 0:  # not by the system
                reason, hint = f"{reason}: {last_line}", "install the versions of constraints.txt"
            problem = f"{self.full_name} in {self.data_dir} cannot be read: {reason}"
            raise DataError(problem, hint=hint)
        if isinstance(result, partial):
            raise result()
        return result

    def decode(self) -> Dataset:
        """Read the prepared set in this process.

        Raises ``DataError`` for a file that is damaged or cannot be read.
        """
        config = self.builder.builder_config
        features: Any = self.builder.info.features
        return Dataset(
            name=f"{self.builder.name}/{config.name}" if config else self.builder.name,
            source=f"tensorflow-datasets {self.full_name}",
            class_names=tuple(features[self.label].names),
            train=self._read("train"),
            test=self._read("test"),
        )

    def _find_builder(self) -> tfds.core.DatasetBuilder:
        logging.getLogger("absl").setLevel(logging.ERROR)
        tfds.disable_progress_bar()
        try:
            return tfds.builder(self.name, data_dir=self.root)
        except Exception as error:
            # Any error may come from a damaged file of the set.
            plain_name = re.split("[/:]", self.name)[0]
            for file in sorted((self.root / plain_name).glob("**/*.json")):
                if tfds.core.Version.is_valid(file.parent.name):
                    self._check_description(file.parent)
            if isinstance(error, tfds.core.DatasetNotFoundError):
                near = did_you_mean(self.name, [*tfds.list_builders(), "garments"])
                hint = (
                    "use a name of tensorflow-datasets (fashion_mnist, mnist, cifar10, ...), "
                    "garments, which is built in, or the path of your own images, such as ./images"
                )
                if os.path.exists(self.name):
                    hint = f"use --dataset ./{self.name} for your own images of that name"
                raise DataError(f"there is no data set {self.name}{near}", hint=hint) from None
            if isinstance(error, AssertionError | ValueError):  # unknown configuration or version
                problem = f"tensorflow-datasets has no {self.name}: {_first_line(error)}"
                raise DataError(problem, hint=f"use --dataset {plain_name}") from error
            raise

    def _image_and_label(self) -> tuple[str, str]:
        """Return the keys of the image and of the label; raise if a set has no such pair."""
        info: Any = self.builder.info
        kinds: Any = tfds.features
        keys: Any = info.supervised_keys or ()  # or structures of keys, such as in titanic
        match [info.features[key] for key in keys if isinstance(key, str) and key in info.features]:
            case [kinds.Image() as image, kinds.ClassLabel()]:
                shape, dtype = image.shape, np.dtype(image.np_dtype)
                if None not in shape and dtype == np.uint8:
                    return keys
                actual = f"the images of {self.name} have shape {shape} and type {dtype}"
                problem = f"{actual}; they must have one fixed shape and 8 bits"
                hint = "use a set whose images all have one size, such as mnist or cifar10"
            case _:
                problem = f"{self.builder.name} is not an image classification set"
                hint = "use a set of images with one label each, such as fashion_mnist or cifar10"
        raise DataError(problem, hint=hint)

    def _is_prepared(self) -> bool:
        """Return whether the folder of the set exists; raise if the set in it is incomplete."""
        exists = os.path.lexists(self.folder)
        if exists:
            self._check_description(self.folder)
        return exists

    def _check_description(self, folder: Path) -> None:
        """Refuse a prepared set whose description is missing or damaged.

        tensorflow-datasets itself reads only a part of it if it has the code of the set.
        """
        with self._reading(folder):
            info: Any = tfds.builder_from_directory(folder).info
            if not info.splits:
                raise ValueError("it describes no images")
            for feature in info.features.values():
                if isinstance(feature, tfds.features.ClassLabel):
                    num_names, num_classes = len(feature.names), feature.num_classes
                    if num_names != num_classes:
                        raise ValueError(f"it names {num_names} of {num_classes} classes")

    def _require_downloadable(self) -> None:
        if self.builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise DataUnavailableError(
                f"{self.name} cannot be downloaded by a program: download its files by hand",
                hint=f"{PROGRAM} data prepare --dataset {self.name} --from DIR reads them from DIR",
            )
        # The first file stands for all of them: they usually have the same server.
        url = next(iter(self.originals), None)
        if url is not None and (reason := _probe(url)):
            problem = f"{self.name} is not prepared in {self.data_dir}"
            raise self._unavailable(f"{problem}; it cannot be downloaded from {url}: {reason}")

    def _check_originals(self, folder: Path) -> None:
        """Raise for files that are missing or differ from the originals, with the name of each."""
        problems = []
        for url, original in self.originals.items():
            path = folder / (original.filename or url.rpartition("/")[2])
            if not path.is_file():
                problems.append(f"{path} does not exist")
                continue
            with path.open("rb") as file:
                is_original = hashlib.file_digest(file, "sha256").hexdigest() == original.checksum
            if not is_original:
                size, expected = path.stat().st_size, int(original.size)
                sizes = f"it has {size:,} bytes, the original has {expected:,}"
                what = "its SHA-256 is not the original's" if size == expected else sizes
                problems.append(f"{path} is damaged: {what}")
        if problems:
            server = next(iter(self.originals)).rpartition("/")[0]
            hint = f"put the original files of {self.builder.name} into {folder}"
            raise DataError(*problems, hint=f"{hint}; they come from {server}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise the errors of a preparation as ``DataError`` or ``StorageError``."""
        try:
            yield
        except PlateauTrainError:
            raise
        except download_manager.NonMatchingChecksumError as error:
            problem = f"a file of {self.builder.name} is not the original: {_first_line(error)}"
            hint = "download it again later, or use the original files with --from DIR"
            raise DataError(problem, hint=hint) from error
        except (util.DownloadError, requests.RequestException) as error:
            problem = f"{self.builder.name} cannot be downloaded: {error}"
            raise self._unavailable(problem) from error
        except Exception as error:
            # The error of a disk is the cause of other kinds of errors, or one of tensorflow's.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError | tf.errors.OpError):
                cause = cause.__cause__
            if cause is None:
                raise
            reason = getattr(cause, "strerror", None) or _first_line(cause)
            problem = f"{self.full_name} in {self.data_dir} cannot be written: {reason}"
            hint = "use --data-dir with a writable folder that has free space"
            raise StorageError(problem, hint=hint) from error

    def _read(self, split: str) -> Split:
        """Read all examples of a split in the order of its files."""
        splits: Any = self.builder.info.splits
        if split not in splits:
            problem = f"{self.builder.name} has no split {split}: it has {', '.join(splits)}"
            hint = "use a set with a train and a test split, such as fashion_mnist or cifar10"
            raise DataError(problem, hint=hint)
        with self._reading(self.folder):
            paths, lengths = splits[split].filepaths, splits[split].shard_lengths
            # tensorflow-datasets writes no empty file, and would skip one that is described so.
            if min(lengths, default=0) < 1:
                raise ValueError(f"it describes a file without examples in {split}")
        # A build of tensorflow with CUDA would allocate the memory of every GPU.
        tf.config.set_visible_devices([], "GPU")
        read: Any = self.builder.as_dataset  # its decorator hides the parameters
        images, labels, start = [], [], 0
        # Each file on its own, because tensorflow's errors do not name it.
        for path, num_examples in zip(paths, lengths, strict=True):
            part = tfds.core.ReadInstruction(split, start, start + num_examples, unit="abs")
            start += num_examples
            with self._reading(self.folder, path.name):
                columns: Any = tfds.as_numpy(read(split=part, batch_size=-1))
            images.append(columns[self.image])
            labels.append(columns[self.label].astype(np.int32))
        return Split(np.concatenate(images), np.concatenate(labels))

    @contextlib.contextmanager
    def _reading(self, folder: Path, file: str = "") -> Iterator[None]:
        """Raise any error as a ``DataError`` about the folder of a set or a file in it."""
        try:
            yield
        except Exception as error:  # the parsers of tensorflow-datasets raise many kinds
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            problem = f"{folder / file} cannot be read: {_first_line(cause)}"
            raise DataError(problem, hint=self._repair(folder)) from error

    def _repair(self, folder: Path) -> str:
        """Return a hint with the command that repairs a damaged set."""
        command = f"{PROGRAM} data prepare --dataset {self.name}"
        data_dir = shlex.quote(str(self.root))
        return f"if it is damaged, delete {folder} and run {command} --data-dir {data_dir}"

    def _unavailable(self, problem: str) -> DataUnavailableError:
        return DataUnavailableError(
            problem,
            hint=f"{PROGRAM} data prepare --dataset {self.name} downloads it, or reads the "
            "original files with --from DIR; --dataset garments needs neither",
        )


@contextlib.contextmanager
def _incomplete(data_dir: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that only this process uses, and remove it at the end.

    If a process is killed, the kernel releases its lock, and the next one removes its folder.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    folder = data_dir / INCOMPLETE
    # The file of the lock is writable, because NFS locks no other. It is never removed: a process
    # that waits for it would then lock a file that no other process can open.
    with (data_dir / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that prepares a data set in %s", data_dir)
            fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    """Return the first line of a message, without tensorflow's names of operations and files."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^(\{\{.*?\}\} )?(.*? with iterator: \S+ )?(/.*; )?|\.?( \[Op:.*)?$", "", line)


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
    return reasons[0] if reasons else f"no response within {PROBE_SECONDS:g} s"
