import contextlib
import fcntl
import gzip
import http.server
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import originals
import pytest
import tensorflow_datasets
from helpers import ORIGINALS
from tensorflow_datasets.image_classification import mnist

from plateau_train import config, data
from plateau_train.data import tfds
from plateau_train.data.splits import Dataset, Split, split_dataset
from plateau_train.errors import ConfigError, DataError, DataUnavailableError, StorageError
from plateau_train.training import setup

needs_originals = pytest.mark.skipif(
    not ORIGINALS.is_dir(), reason="the original files of Fashion-MNIST are not beside the project"
)


def numbered(num_train=100, num_test=20):
    """Make a data set whose labels are the numbers of its images."""

    def split(num_examples):
        images = np.zeros((num_examples, 2, 2, 1), np.uint8)
        return Split(images, np.arange(num_examples, dtype=np.int32))

    return Dataset("numbered", "a test", ("a", "b"), split(num_train), split(num_test))


@pytest.fixture
def no_network(monkeypatch):
    """Send every request to a closed port, as on a machine without a network."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_held_out_images_come_from_the_training_images_only():
    dataset = split_dataset(numbered(), config.DataSettings(val_fraction=0.25, batch_size=10))
    assert dataset.val is not None
    train, val = set(dataset.train.labels.tolist()), set(dataset.val.labels.tolist())
    assert (len(train), len(val)) == (75, 25)
    assert train | val == set(range(100))
    assert len(dataset.test.labels) == 20
    assert val != set(range(75, 100)), "the last images would be whole classes in a sorted set"


def test_fewer_examples_are_the_first_ones():
    settings = config.DataSettings(train_examples=30, test_examples=7, batch_size=10)
    dataset = split_dataset(numbered(), settings)
    assert dataset.train.labels.tolist() == list(range(30))
    assert dataset.test.labels.tolist() == list(range(7))


def test_a_batch_larger_than_the_training_set_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"--batch-size 70,000 is larger than the 75 training"):
        split_dataset(numbered(), config.DataSettings(batch_size=70_000, val_fraction=0.25))


@pytest.mark.parametrize(("fraction", "message"), [(0.001, "none"), (0.999, "all of them")])
def test_a_fraction_that_holds_out_nothing_or_everything_is_refused(fraction, message):
    expected = rf"--val-fraction {fraction} of 100 .* holds out {message}"
    with pytest.raises(ConfigError, match=expected):
        split_dataset(numbered(), config.DataSettings(val_fraction=fraction, batch_size=10))


def test_a_part_of_garments_is_the_beginning_of_a_larger_part():
    few, more = (
        data.load(config.DataSettings(dataset="garments", train_examples=count, test_examples=10))
        for count in (150, 300)
    )
    assert len(few.train.labels) == 150
    assert np.array_equal(few.train.images, more.train.images[:150])
    assert not few.fallback


def test_auto_falls_back_to_garments_and_keeps_the_reason(tmp_path, no_network):
    settings = config.DataSettings(
        dataset="auto", data_dir=tmp_path, train_examples=200, test_examples=10
    )
    started = time.monotonic()
    dataset = data.load(settings)
    assert time.monotonic() - started < 10
    assert dataset.name == "garments"
    assert f"fashion_mnist is not prepared in {tmp_path}" in dataset.fallback
    assert "cannot be downloaded from http" in dataset.fallback


def test_a_named_set_never_falls_back(tmp_path, no_network):
    settings = config.DataSettings(dataset="fashion_mnist", data_dir=tmp_path)
    started = time.monotonic()
    with pytest.raises(DataUnavailableError) as refused:
        data.load(settings)
    assert time.monotonic() - started < 10
    assert "--from DIR" in refused.value.hint


def test_a_server_that_never_answers_is_given_up_within_seconds(tmp_path, monkeypatch):
    assert tfds.PROBE_SECONDS <= 5
    monkeypatch.setattr(tfds, "PROBE_SECONDS", 0.5)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as mute:
        # It accepts connections, which wait in its queue forever.
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{mute.server_port}")
        started = time.monotonic()
        with pytest.raises(DataUnavailableError, match=r"timed out|no response"):
            data.load(config.DataSettings(dataset="fashion_mnist", data_dir=tmp_path))
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_mnst", "did you mean fashion_mnist?"),
        ("garmets", "did you mean garments?"),
        ("no_such_thing_at_all", "there is no data set"),
        ("mnist:9.9.9", "tensorflow-datasets has no mnist:9.9.9"),
        ("iris", "is not an image classification set"),
        ("titanic", "is not an image classification set"),
        ("imagenet2012", "one fixed shape"),
    ],
)
def test_an_unusable_set_is_refused_before_any_download(name, message, tmp_path):
    with pytest.raises(DataError) as refused:
        data.load(config.DataSettings(dataset=name, data_dir=tmp_path))
    assert message in refused.value.problems[0]


def test_an_unknown_name_is_refused_with_the_path_of_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = config.DataSettings(dataset="pets", data_dir=tmp_path)
    for hint in ("or the path of your own images, such as ./images", "use --dataset ./pets for"):
        with pytest.raises(DataError, match="there is no data set pets") as refused:
            data.load(settings)
        assert hint in refused.value.hint
        (tmp_path / "pets").mkdir(exist_ok=True)


def test_missing_and_truncated_original_files_are_refused_by_name(tmp_path):
    cut = tmp_path / "train-labels-idx1-ubyte.gz"
    cut.write_bytes(b"\0" * 100)
    with pytest.raises(DataError) as refused:
        data.prepare(config.DataSettings(data_dir=tmp_path / "data"), tmp_path)
    problems = "\n".join(refused.value.problems)
    assert f"{cut} is damaged" in problems
    assert "100 bytes, the original has 29,515" in problems
    assert f"{tmp_path / 'train-images-idx3-ubyte.gz'} does not exist" in problems
    assert not (tmp_path / "data" / "fashion_mnist").exists()


def test_an_original_file_with_other_bytes_is_refused_by_name(tmp_path):
    wrong = tmp_path / "t10k-labels-idx1-ubyte.gz"
    wrong.write_bytes(b"\0" * 5148)
    with pytest.raises(DataError) as refused:
        data.prepare(config.DataSettings(data_dir=tmp_path / "data"), tmp_path)
    assert f"{wrong} is damaged" in "\n".join(refused.value.problems)


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A small set without network and original files."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "picture": features.Image(shape=(6, 5, 3)),
                    "kind": features.ClassLabel(names=["x", "y"]),
                }
            ),
            supervised_keys=("picture", "kind"),
            disable_shuffling=True,
        )

    def _split_generators(self, _):
        return {
            "train": self._generate_examples(0, 30),
            "test": self._generate_examples(30, 40),
        }

    def _generate_examples(self, start, stop):
        for number in range(start, stop):
            self.before_example()
            yield number, {"picture": self.IMAGES[number], "kind": number % 2}

    @staticmethod
    def before_example():
        """Do nothing; tests replace it to pause, break or kill a preparation."""


def assert_is_tiny(dataset):
    assert np.array_equal(dataset.train.images, Tiny.IMAGES[:30])
    assert np.array_equal(dataset.test.images, Tiny.IMAGES[30:])
    assert dataset.test.labels.tolist() == [0, 1] * 5


def read_tiny(data_dir):
    source = tfds.Source("tiny", data_dir)
    source.require_prepared()
    return source.decode()


def test_a_set_of_tensorflow_datasets_is_read_completely_and_in_order(tmp_path):
    tfds.Source("tiny", tmp_path).prepare()
    dataset = read_tiny(tmp_path)
    assert_is_tiny(dataset)
    assert dataset.test.labels.dtype == np.int32
    assert (dataset.class_names, dataset.image_shape) == (("x", "y"), (6, 5, 3))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepare a set whose training images are in two files, and return its folder."""
    tf = tfds.tf
    data_dir = tmp_path_factory.mktemp("prepared")
    tfds.Source("tiny", data_dir).prepare()
    folder = data_dir / "tiny" / "1.0.0"
    whole = folder / "tiny-train.tfrecord-00000-of-00001"
    records: Any = list(tf.data.TFRecordDataset(str(whole)).as_numpy_iterator())
    for file, part in ((FIRST, records[:20]), (SECOND, records[20:])):
        with tf.io.TFRecordWriter(str(folder / file)) as writer:
            for record in part:
                writer.write(record)
    whole.unlink()
    edit(shardLengths=["20", "10"])(folder / INFO)
    return folder


INFO, FEATURES, LABELS = "dataset_info.json", "features.json", "kind.labels.txt"
FIRST, SECOND = (f"tiny-train.tfrecord-0000{number}-of-00002" for number in (0, 1))
TEST = "tiny-test.tfrecord-00000-of-00001"
RECORD = 12  # position of the first record, after its length and the checksum of that


def flip(position):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)

    return damage


def keep(num_bytes):
    return lambda path: path.write_bytes(path.read_bytes()[:num_bytes])


def drop_the_last_record(path):
    content = path.read_bytes()
    start = end = 0
    while end < len(content):
        start, size = end, int.from_bytes(content[end : end + 8], "little")
        end += RECORD + size + 4
    path.write_bytes(content[:start])


def write(content):
    return lambda path: path.write_bytes(content)


def make_folder(path):
    path.unlink()
    path.mkdir()


def edit(**changes):
    """Return a function that changes the description of the training images."""

    def damage(path):
        description = json.loads(path.read_text())
        (train,) = (split for split in description["splits"] if split["name"] == "train")
        train.update(changes)
        path.write_text(json.dumps(description))

    return damage


def remove_the_splits(path):
    description = json.loads(path.read_text())
    del description["splits"]
    path.write_text(json.dumps(description))


NO_TEXT = bytes(range(128, 256))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (SECOND, flip(0), "corrupted record at 0"),
        (SECOND, flip(8), "corrupted record at 0"),
        (SECOND, flip(RECORD), "corrupted record at 12"),
        (FIRST, flip(-1), "corrupted record at"),
        (FIRST, keep(-10), "truncated record at"),
        (SECOND, drop_the_last_record, "expected to contain 10 elements but contained only 9"),
        (SECOND, lambda path: shutil.copy(path.with_name(FIRST), path), "at least 11 elements"),
        (TEST, keep(0), "expected to contain 10 elements but contained only 0"),
        (TEST, Path.unlink, "cannot be read: No such file or directory"),
        (FIRST, make_folder, "cannot be read: Is a directory"),
        (INFO, Path.unlink, f"No such file or directory: '.*{INFO}'"),
        (INFO, keep(0), "Failed to load JSON"),
        (INFO, write(NO_TEXT), "'utf-8' codec"),
        (INFO, write(b"{}"), "Invalid version ''"),
        (INFO, remove_the_splits, "it describes no images"),
        (INFO, edit(name=""), "Split must be a non-empty string"),
        (INFO, edit(shardLengths=["20", "0"]), "it describes a file without examples in train"),
        (INFO, edit(shardLengths=["20", "-1"]), "it describes a file without examples in train"),
        (INFO, edit(shardLengths=[]), "it describes a file without examples in train"),
        (INFO, edit(filepathTemplate="{NONE}"), "Could not format template"),
        (FEATURES, Path.unlink, "Cannot restore tiny/1.0.0"),
        (FEATURES, keep(100), "Expecting property name"),
        (LABELS, keep(2), "it names 1 of 2 classes"),
    ],
)
def test_a_damaged_set_is_named_with_the_command_that_repairs_it(
    file, damage, message, prepared, tmp_path
):
    folder = tmp_path / "tiny" / "1.0.0"
    shutil.copytree(prepared, folder)
    assert_is_tiny(read_tiny(tmp_path))

    damage(folder / file)
    with pytest.raises(DataError) as refused:
        read_tiny(tmp_path)
    (problem,) = refused.value.problems
    named = folder / file if "tfrecord" in file else folder
    assert problem.startswith(f"{named} cannot be read: ")
    assert re.search(message, problem)
    repair = f"plateau-train data prepare --dataset tiny --data-dir {tmp_path}"
    assert refused.value.hint == f"if it is damaged, delete {folder} and run {repair}"

    shutil.rmtree(folder)
    tfds.Source("tiny", tmp_path).prepare()
    assert_is_tiny(read_tiny(tmp_path))


@pytest.mark.parametrize(
    ("file", "damage"),
    [(INFO, edit(numBytes="7")), (LABELS, Path.unlink), (LABELS, write(NO_TEXT))],
)
def test_damage_to_what_is_not_read_changes_no_data(file, damage, prepared, tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    shutil.copytree(prepared, folder)
    damage(folder / file)
    dataset = read_tiny(tmp_path)
    assert_is_tiny(dataset)
    assert dataset.class_names == ("x", "y"), "the code of the set has them as well"


@pytest.fixture
def settings(prepared, tmp_path):
    """Return the settings of a run on a prepared set, with a separate cache."""
    shutil.copytree(prepared, tmp_path / "data" / "tiny" / "1.0.0")
    return config.DataSettings(
        dataset="tiny", data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", batch_size=10
    )


def load_here(source):
    """Read a prepared set in this process, which need not import tensorflow first."""
    return tfds.Source(source.name, source.data_dir).decode()


START = """
import logging, sys
from plateau_train import config, data
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
dataset = data.load(config.DataSettings.model_validate_json(sys.argv[1]))
assert not set(sys.argv[2:]) & set(sys.modules)
print(dataset.sha256, dataset.source)
"""


def test_no_start_imports_tensorflow_and_the_second_not_even_its_data_sets(settings):
    def start(*unwanted):
        program = [sys.executable, "-c", START, settings.model_dump_json(), *unwanted]
        return subprocess.check_output(program, text=True)

    labels = np.arange(30, dtype=np.int32) % 2
    train, test = Split(Tiny.IMAGES[:30], labels), Split(Tiny.IMAGES[30:], labels[:10])
    digest = Dataset("", "", (), train, test).sha256
    loaded = f"{digest} tensorflow-datasets tiny/1.0.0 in {settings.data_dir}\n"
    message = f"reading tiny/1.0.0 from {settings.data_dir}\n"
    assert start("tensorflow") == message + loaded
    assert start("tensorflow", "tensorflow_datasets") == loaded


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found in /proc")
def test_a_signal_also_ends_the_process_that_decodes(settings):
    program = [sys.executable, "-m", "plateau_train", "data", "info", "--dataset=tiny"]
    folders = (f"--data-dir={settings.data_dir}", f"--cache-dir={settings.cache_dir}")

    def decoding():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes()
                if b"plateau_train.data.decoder" in words and bytes(settings.data_dir) in words:
                    return True
        return False

    def wait_until(is_so):
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with subprocess.Popen([*program, *folders], stderr=subprocess.PIPE, text=True) as starting:
        wait_until(decoding)
        starting.terminate()
        _, error = starting.communicate()
    assert "stopped (SIGTERM)\n" in error
    wait_until(lambda: not decoding())
    assert not settings.cache_dir.exists()


def test_the_cache_hides_neither_damage_nor_other_data(settings, monkeypatch, tmp_path, messages):
    load = tfds.Source.load
    monkeypatch.setattr(tfds.Source, "load", load_here)
    before = data.load(settings)
    assert_is_tiny(before)
    (cached,) = settings.cache_dir.iterdir()
    content = cached.read_bytes()
    keep(-10)(cached)
    messages.clear()
    assert_is_tiny(data.load(settings))
    assert messages == [f"reading tiny/1.0.0 from {settings.data_dir}"]
    assert cached.read_bytes() == content
    folder = settings.data_dir / "tiny" / "1.0.0"
    flip(-1)(folder / FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(tfds.Source, "load", load)  # in a process of its own, as always
        with pytest.raises(DataError, match=f"{FIRST} cannot be read: corrupted"):
            data.load(settings)
    shutil.rmtree(folder)
    monkeypatch.setattr(Tiny, "IMAGES", 255 - Tiny.IMAGES)
    assert_is_tiny(data.load(settings))
    run: Any = SimpleNamespace(path=tmp_path)
    with pytest.raises(DataError, match="was trained on tiny of SHA-256"):
        setup.load_data(config.Settings(data=settings), run, setup.describe_data(before))


def test_a_process_that_is_ended_while_it_reads_is_reported(settings):
    """An enormous number of examples makes tensorflow abort."""
    folder = settings.data_dir / "tiny" / "1.0.0"
    edit(shardLengths=["20", str(10**15)])(folder / INFO)
    with pytest.raises(DataError) as refused:
        data.load(settings)
    assert refused.value.problems == (
        f"tiny/1.0.0 in {settings.data_dir} cannot be read: "
        "the process that reads it ended with exit code -6",
    )
    assert refused.value.hint.startswith(f"free memory; if it is damaged, delete {folder} and run")


def test_what_is_printed_while_a_set_is_read_is_no_part_of_it(settings, monkeypatch):
    settings.cache_dir.mkdir()
    (settings.cache_dir / "sitecustomize.py").write_text("import os; os.write(1, b'noise')\n")
    monkeypatch.setenv("PYTHONPATH", str(settings.cache_dir), prepend=os.pathsep)
    assert_is_tiny(data.load(settings))


def test_a_bug_in_the_process_that_reads_keeps_its_traceback(settings, monkeypatch):
    settings.cache_dir.mkdir()
    # Python imports this file when it starts.
    (settings.cache_dir / "sitecustomize.py").write_text(
        "from plateau_train.data import tfds\ntfds.Source.decode = lambda _: 1 / 0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(settings.cache_dir), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match=r"sitecustomize.py[\s\S]*ZeroDivisionError"):
        data.load(settings)


def test_an_incomplete_set_does_not_count_as_prepared(prepared, tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    shutil.copy(prepared / TEST, folder)
    with pytest.raises(DataError, match=f"cannot be read: .*{INFO}"):
        tfds.Source("tiny", tmp_path).prepare()


def test_a_bug_in_the_code_of_a_set_is_not_reported_as_damage(tmp_path, monkeypatch):
    def fail():
        raise ValueError("a bug")

    monkeypatch.setattr(Tiny, "before_example", staticmethod(fail))
    with pytest.raises(ValueError, match="a bug"):
        tfds.Source("tiny", tmp_path).prepare()
    assert os.listdir(tmp_path) == [tfds.LOCK]


def test_a_killed_preparation_blocks_nothing_and_leaves_nothing(tmp_path, monkeypatch, messages):
    program = (
        "import sys, time, test_data\n"
        "def wait(): print(flush=True, file=sys.stderr); time.sleep(100)\n"
        "test_data.Tiny.before_example = staticmethod(wait)\n"
        f"test_data.tfds.Source('tiny', test_data.Path({str(tmp_path)!r})).prepare()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
    ) as preparing:
        assert preparing.stderr is not None
        assert preparing.stderr.readline() == b"\n"
        preparing.kill()

    def unfinished():
        return set(tmp_path.glob(f"{tfds.INCOMPLETE}/tiny/incomplete.*"))

    left, seen = unfinished(), set()
    assert left, "the killed process had not begun"
    monkeypatch.setattr(Tiny, "before_example", staticmethod(lambda: seen.update(unfinished())))
    tfds.Source("tiny", tmp_path).prepare()
    assert_is_tiny(read_tiny(tmp_path))
    assert seen, "nothing was prepared"
    assert not seen & left, "it was prepared among the leftovers"
    assert not any("waiting" in message for message in messages)
    assert sorted(os.listdir(tmp_path)) == [tfds.LOCK, "tiny"]
    assert os.listdir(tmp_path / "tiny") == ["1.0.0"]


def test_a_second_preparation_waits_for_the_first(tmp_path, monkeypatch):
    """Use two threads: the lock belongs to an open file, not to a process."""
    has_begun, may_continue, results, messages = threading.Event(), threading.Event(), {}, []

    def hold():
        has_begun.set()
        assert may_continue.wait(30)

    def prepare(name):
        results[name] = tfds.Source("tiny", tmp_path).prepare()

    def record(message, *values):
        if message.startswith("waiting"):
            messages.append(message % values)
            may_continue.set()

    monkeypatch.setattr(Tiny, "before_example", staticmethod(hold))
    monkeypatch.setattr(tfds.log, "info", record)
    first = threading.Thread(target=prepare, args=("first",))
    first.start()
    assert has_begun.wait(30)
    prepare("second")
    first.join(30)
    assert messages == [f"waiting for another process that prepares a data set in {tmp_path}"]
    assert results == {
        "first": f"prepared tiny/1.0.0 in {tmp_path}",
        "second": f"tiny/1.0.0 in {tmp_path} is already prepared",
    }
    assert_is_tiny(read_tiny(tmp_path))


def test_a_prepared_set_needs_no_lock_and_no_write_permission(prepared, tmp_path, messages):
    shutil.copytree(prepared, tmp_path / "tiny" / "1.0.0")
    with (tmp_path / tfds.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tmp_path.chmod(0o555)
        try:
            assert "is already prepared" in tfds.Source("tiny", tmp_path).prepare()
            assert not messages
            assert_is_tiny(read_tiny(tmp_path))
        finally:
            tmp_path.chmod(0o755)


def test_a_full_disk_is_reported_and_nothing_is_left_on_it(tmp_path):
    """Limit the size of a file, which has the same effect as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"in {tmp_path} cannot be written: File too large"):
            tfds.Source("tiny", tmp_path).prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == [tfds.LOCK]
    tfds.Source("tiny", tmp_path).prepare()
    assert_is_tiny(read_tiny(tmp_path))


def test_a_path_where_no_folder_can_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        tfds.Source("tiny", tmp_path / "file" / "data").prepare()


@needs_originals
def test_fashion_mnist_is_downloaded_verified_and_prepared(tmp_path, monkeypatch, messages):
    """The first images of each split; scripts/torture prepares all of them."""
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 200)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 100)
    monkeypatch.setattr(tfds.Source, "load", load_here)
    described = originals.check_download(tmp_path)
    assert messages[0].startswith("downloading and preparing fashion_mnist/3.0.1")
    assert (described["train"], described["test"]) == ("200 images", "100 images")
    with gzip.open(ORIGINALS / "train-images-idx3-ubyte.gz") as file:
        first = np.frombuffer(file.read(16 + 200 * 784)[16:], np.uint8)
    assert described["pixels"].startswith(f"mean {first.mean() / 255:.5f}, standard deviation")


def test_a_tilde_in_the_data_folder_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = tfds.Source("mnist", Path("~/sets"))
    assert str(source.folder).startswith(f"{tmp_path}/sets/mnist")
