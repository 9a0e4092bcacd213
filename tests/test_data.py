import contextlib
import fcntl
import http.server
import json
import os
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
import pytest
import tensorflow_datasets
from conftest import ORIGINALS

from plateau_train import config, data
from plateau_train.data import tfds
from plateau_train.data.splits import Dataset, Split, split_dataset
from plateau_train.errors import ConfigError, DataError, DataUnavailableError, StorageError
from plateau_train.report.console import Report
from plateau_train.training import setup

needs_originals = pytest.mark.skipif(
    not ORIGINALS.is_dir(), reason="the original files of Fashion-MNIST are not beside the project"
)


def silent(_):
    pass


def numbered(num_train=100, num_test=20):
    """A data set whose labels number its images."""

    def split(num_examples):
        images = np.zeros((num_examples, 2, 2, 1), np.uint8)
        return Split(images, np.arange(num_examples, dtype=np.int32))

    return Dataset("numbered", "a test", ("a", "b"), split(num_train), split(num_test))


@pytest.fixture
def no_network(monkeypatch):
    """Send every request to a port where nothing listens, as a machine without a network would."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_held_out_images_are_taken_from_the_training_images_and_from_nowhere_else():
    shared = split_dataset(numbered(), config.DataSettings(val_fraction=0.25, batch_size=10))
    assert shared.val is not None
    train, val = set(shared.train.labels.tolist()), set(shared.val.labels.tolist())
    assert (len(train), len(val)) == (75, 25)
    assert train | val == set(range(100))
    assert len(shared.test.labels) == 20
    assert val != set(range(75, 100)), "a set in the order of its classes would lose some"


def test_the_first_examples_are_used_when_fewer_are_asked_for():
    settings = config.DataSettings(train_examples=30, test_examples=7, batch_size=10)
    shared = split_dataset(numbered(), settings)
    assert shared.train.labels.tolist() == list(range(30))
    assert shared.test.labels.tolist() == list(range(7))


def test_a_batch_that_is_larger_than_the_training_set_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"--batch-size 70,000 is larger than the 75 training"):
        split_dataset(numbered(), config.DataSettings(batch_size=70_000, val_fraction=0.25))


@pytest.mark.parametrize(("fraction", "said"), [(0.001, "none"), (0.999, "all of them")])
def test_a_fraction_that_holds_out_nothing_or_everything_is_refused(fraction, said):
    with pytest.raises(ConfigError, match=rf"--val-fraction {fraction} of 100 .* holds out {said}"):
        split_dataset(numbered(), config.DataSettings(val_fraction=fraction, batch_size=10))


def test_garments_can_be_loaded_in_part_and_begin_alike():
    few = data.load(
        config.DataSettings(dataset="garments", train_examples=150, test_examples=10), say=silent
    )
    more = data.load(
        config.DataSettings(dataset="garments", train_examples=300, test_examples=10), say=silent
    )
    assert len(few.train.labels) == 150
    assert np.array_equal(few.train.images, more.train.images[:150])
    assert not few.fallback


def test_auto_falls_back_to_garments_and_says_what_was_tried(tmp_path, no_network):
    settings = config.DataSettings(
        dataset="auto", data_dir=tmp_path, train_examples=200, test_examples=10
    )
    started = time.monotonic()
    dataset = data.load(settings, say=silent)
    assert time.monotonic() - started < 10
    assert dataset.name == "garments"
    assert f"fashion_mnist is not prepared in {tmp_path}" in dataset.fallback
    assert "cannot be downloaded from http" in dataset.fallback


def test_a_named_set_never_falls_back(tmp_path, no_network):
    settings = config.DataSettings(dataset="fashion_mnist", data_dir=tmp_path)
    started = time.monotonic()
    with pytest.raises(DataUnavailableError) as refused:
        data.load(settings, say=silent)
    assert time.monotonic() - started < 10
    assert "--from DIR" in refused.value.hint


def test_a_server_that_never_answers_is_given_up_in_time(tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as mute:
        # It accepts connections, which wait in its queue for ever.
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{mute.server_port}")
        started = time.monotonic()
        with pytest.raises(DataUnavailableError, match=r"timed out|no answer"):
            data.load(config.DataSettings(dataset="fashion_mnist", data_dir=tmp_path), say=silent)
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fashion_mnst", "did you mean fashion_mnist?"),
        ("garmets", "did you mean garments?"),
        ("no_such_thing_at_all", "there is no data set"),
        ("mnist:9.9.9", "tensorflow-datasets does not know mnist:9.9.9"),
        ("coco", "is no image classification set"),
        ("imagenet2012", "one fixed shape"),
    ],
)
def test_a_set_that_cannot_be_trained_on_is_refused_before_any_download(name, said, tmp_path):
    with pytest.raises(DataError) as refused:
        data.load(config.DataSettings(dataset=name, data_dir=tmp_path), say=silent)
    assert said in refused.value.problems[0]


def test_original_files_that_are_missing_or_cut_short_are_refused_by_name(tmp_path):
    cut = tmp_path / "train-labels-idx1-ubyte.gz"
    cut.write_bytes(b"\0" * 100)
    with pytest.raises(DataError) as refused:
        data.prepare(config.DataSettings(data_dir=tmp_path / "data"), tmp_path, say=silent)
    said = "\n".join(refused.value.problems)
    assert f"{cut} has 100 bytes, the original has 29,515" in said
    assert f"{tmp_path / 'train-images-idx3-ubyte.gz'} does not exist" in said
    assert not (tmp_path / "data" / "fashion_mnist").exists()


def test_an_original_file_of_the_right_size_with_other_bytes_is_refused_by_name(tmp_path):
    wrong = tmp_path / "t10k-labels-idx1-ubyte.gz"
    wrong.write_bytes(b"\0" * 5148)
    with pytest.raises(DataError) as refused:
        data.prepare(config.DataSettings(data_dir=tmp_path / "data"), tmp_path, say=silent)
    assert f"{wrong} is damaged" in "\n".join(refused.value.problems)


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A set of the tests' own: no network, no original files."""

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
        """For the tests that hold, break or kill a preparation."""


def assert_is_tiny(dataset):
    assert np.array_equal(dataset.train.images, Tiny.IMAGES[:30])
    assert np.array_equal(dataset.test.images, Tiny.IMAGES[30:])
    assert dataset.test.labels.tolist() == [0, 1] * 5


def test_a_set_of_tensorflow_datasets_is_read_whole_and_in_order(tmp_path):
    tfds.prepare("tiny", tmp_path, say=silent)
    dataset = tfds.load("tiny", tmp_path)
    assert_is_tiny(dataset)
    assert dataset.test.labels.dtype == np.int32
    assert (dataset.class_names, dataset.image_shape) == (("x", "y"), (6, 5, 3))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a prepared set, whose training images lie in two files."""
    import tensorflow as tf

    data_dir = tmp_path_factory.mktemp("prepared")
    tfds.prepare("tiny", data_dir, say=silent)
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
RECORD = 12  # where the first one begins, behind its length and the checksum of that


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
    """Change how the training images are described."""

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
    ("file", "damage", "said"),
    [
        (SECOND, flip(0), "is damaged: corrupted record at 0"),
        (SECOND, flip(8), "is damaged: corrupted record at 0"),
        (SECOND, flip(RECORD), "is damaged: corrupted record at 12"),
        (FIRST, flip(-1), "is damaged: corrupted record at"),
        (FIRST, keep(-10), "is damaged: truncated record at"),
        (SECOND, drop_the_last_record, "expected to contain 10 elements but contained only 9"),
        (SECOND, lambda path: shutil.copy(path.with_name(FIRST), path), "at least 11 elements"),
        (TEST, keep(0), "it has 0 bytes, too few for the 10 examples"),
        (TEST, Path.unlink, "cannot be read: No such file or directory"),
        (FIRST, make_folder, "cannot be read: Is a directory"),
        (INFO, Path.unlink, "cannot be read: No such file or directory"),
        (INFO, keep(0), "is damaged: Failed to load JSON"),
        (INFO, write(NO_TEXT), "is damaged: 'utf-8' codec"),
        (INFO, write(b"{}"), "is damaged: it describes nothing"),
        (INFO, remove_the_splits, "is damaged: it does not name the split train"),
        (INFO, edit(name=""), "is damaged: Split must be a non-empty string"),
        (INFO, edit(numBytes="7"), "it promises 7 bytes of examples in train"),
        (INFO, edit(shardLengths=["20", "0"]), "it has a file without examples in train"),
        (INFO, edit(shardLengths=["20", "-1"]), "it has a file without examples in train"),
        (INFO, edit(filepathTemplate="{NONE}"), "is damaged: Could not format template"),
        (FEATURES, Path.unlink, "cannot be read: No such file or directory"),
        (FEATURES, keep(100), "is damaged: Expecting property name"),
        (LABELS, Path.unlink, "cannot be read: No such file or directory"),
        (LABELS, write(NO_TEXT), "is damaged: 'utf-8' codec"),
        (LABELS, keep(2), "is damaged: it names 1 classes, there are 2"),
    ],
)
def test_a_damaged_file_of_a_set_is_named_with_the_command_that_mends_it(
    file, damage, said, prepared, tmp_path
):
    folder = tmp_path / "tiny" / "1.0.0"
    shutil.copytree(prepared, folder)
    assert_is_tiny(tfds.load("tiny", tmp_path))

    damage(folder / file)
    with pytest.raises(DataError) as refused:
        tfds.load("tiny", tmp_path)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{folder / file} ")
    assert said in problem
    assert refused.value.hint == (
        f"delete {folder} and run plateau-train data prepare --dataset tiny --data-dir {tmp_path}"
    )

    shutil.rmtree(folder)
    tfds.prepare("tiny", tmp_path, say=silent)
    assert_is_tiny(tfds.load("tiny", tmp_path))


@pytest.fixture
def settings(prepared, tmp_path):
    """Of a run on a prepared set, and a cache of its own."""
    shutil.copytree(prepared, tmp_path / "data" / "tiny" / "1.0.0")
    return config.DataSettings(
        dataset="tiny", data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", batch_size=10
    )


START = """
import sys
from plateau_train import config, data
dataset = data.load(config.DataSettings.model_validate_json(sys.argv[1]), say=print)
assert not set(sys.argv[2:]) & set(sys.modules)
print(dataset.sha256(), dataset.source)
"""


def test_no_start_holds_tensorflow_and_the_second_needs_none(settings):
    def start(*unwanted):
        program = [sys.executable, "-c", START, settings.model_dump_json(), *unwanted]
        return subprocess.check_output(program, text=True)

    labels = np.arange(30, dtype=np.int32) % 2
    train, test = Split(Tiny.IMAGES[:30], labels), Split(Tiny.IMAGES[30:], labels[:10])
    digest = Dataset("", "", (), train, test).sha256()
    loaded = f"{digest} tensorflow-datasets tiny/1.0.0 in {settings.data_dir}\n"
    said = f"reading tiny/1.0.0 from {settings.data_dir}\n"
    assert start("tensorflow") == said + loaded
    assert start("tensorflow", "tensorflow_datasets") == loaded


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="it looks for it in /proc")
def test_a_signal_leaves_no_process_that_decodes(settings):
    program = [sys.executable, "-m", "plateau_train", "data", "info", "--dataset=tiny"]
    folders = (f"--data-dir={settings.data_dir}", f"--cache-dir={settings.cache_dir}")

    def decoding():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes()
                if b"plateau_train.data" in words and str(settings.cache_dir).encode() in words:
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
    assert "error: stopped by SIGTERM" in error
    wait_until(lambda: not decoding())
    assert not list(settings.cache_dir.iterdir()), "it went on"


def test_a_cache_that_is_damaged_or_cannot_be_filled_changes_nothing(settings, tmp_path):
    assert_is_tiny(data.load(settings, say=silent))
    (kept,) = settings.cache_dir.iterdir()
    whole = kept.read_bytes()
    keep(-10)(kept)
    told = []
    assert_is_tiny(data.load(settings, say=told.append))
    assert told == [f"reading tiny/1.0.0 from {settings.data_dir}"]
    assert kept.read_bytes() == whole
    (tmp_path / "file").touch()
    assert_is_tiny(
        data.load(settings.model_copy(update={"cache_dir": tmp_path / "file"}), say=silent)
    )


def test_the_cache_hides_neither_damage_nor_other_data(settings, monkeypatch, tmp_path):
    before = data.load(settings, say=silent)
    folder = settings.data_dir / "tiny" / "1.0.0"
    flip(-1)(folder / FIRST)
    with pytest.raises(DataError, match=f"{FIRST} is damaged"):
        data.load(settings, say=silent)
    shutil.rmtree(folder)
    monkeypatch.setattr(Tiny, "IMAGES", 255 - Tiny.IMAGES)
    assert_is_tiny(data.load(settings, say=silent))
    run: Any = SimpleNamespace(path=tmp_path)
    with pytest.raises(DataError, match="was trained on tiny of SHA-256"):
        setup.load_again(run, settings, setup.describe_data(before), Report())


def test_a_number_of_examples_that_would_abort_tensorflow_is_refused(prepared, tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    shutil.copytree(prepared, folder)
    edit(shardLengths=["20", str(10**15)])(folder / INFO)
    with pytest.raises(DataError, match=f"{SECOND} .* too few for the 1,000,000,000,000,000"):
        tfds.load("tiny", tmp_path)


def test_half_of_a_set_does_not_count_as_prepared(prepared, tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    shutil.copy(prepared / TEST, folder)
    with pytest.raises(DataError, match=f"{INFO} cannot be read"):
        tfds.prepare("tiny", tmp_path, say=silent)


def test_a_bug_in_the_code_of_a_set_is_not_taken_for_damage(tmp_path, monkeypatch):
    def fail():
        raise ValueError("a bug")

    monkeypatch.setattr(Tiny, "before_example", staticmethod(fail))
    with pytest.raises(ValueError, match="a bug"):
        tfds.prepare("tiny", tmp_path, say=silent)
    assert os.listdir(tmp_path) == [tfds.LOCK]


def test_a_killed_preparation_blocks_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    """The other process is killed in the middle, as a machine short of memory would do."""
    program = (
        "import sys, time, test_data\n"
        "def wait(): print(flush=True, file=sys.stderr); time.sleep(100)\n"
        "test_data.Tiny.before_example = staticmethod(wait)\n"
        f"test_data.tfds.prepare('tiny', test_data.Path({str(tmp_path)!r}), say=test_data.silent)"
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
        return set(tmp_path.glob(f"{tfds.WORKPLACE}/tiny/incomplete.*"))

    left, seen, told = unfinished(), set(), []
    assert left, "it was not at work"
    monkeypatch.setattr(Tiny, "before_example", staticmethod(lambda: seen.update(unfinished())))
    tfds.prepare("tiny", tmp_path, say=told.append)
    assert_is_tiny(tfds.load("tiny", tmp_path))
    assert seen, "nothing was prepared"
    assert not seen & left, "it went on among the leftovers"
    assert not any("waiting" in line for line in told)
    assert sorted(os.listdir(tmp_path)) == [tfds.LOCK, "tiny"]
    assert os.listdir(tmp_path / "tiny") == ["1.0.0"]


def test_of_two_preparations_at_once_the_second_waits_and_finds_the_set(tmp_path, monkeypatch):
    """The lock is of an open file, not of a process: two threads stand for two processes."""
    at_work, may_go_on, ends = threading.Event(), threading.Event(), {}

    def hold():
        at_work.set()
        assert may_go_on.wait(30)

    def prepare(name, say):
        ends[name] = tfds.prepare("tiny", tmp_path, say=say)

    def go_on_when_waited_for(line):
        told.append(line)
        may_go_on.set()

    monkeypatch.setattr(Tiny, "before_example", staticmethod(hold))
    told = []
    first = threading.Thread(target=prepare, args=("first", silent))
    first.start()
    assert at_work.wait(30)
    prepare("second", go_on_when_waited_for)
    first.join(30)
    assert told == [f"waiting for another process, which prepares a set in {tmp_path}"]
    assert ends == {
        "first": f"prepared tiny/1.0.0 in {tmp_path}",
        "second": f"tiny/1.0.0 in {tmp_path} is prepared already",
    }
    assert_is_tiny(tfds.load("tiny", tmp_path))


def test_a_prepared_set_needs_no_lock_and_no_right_to_write(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "tiny" / "1.0.0")
    with (tmp_path / tfds.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tmp_path.chmod(0o555)
        try:
            assert "is prepared already" in tfds.prepare("tiny", tmp_path, say=pytest.fail)
            assert_is_tiny(tfds.load("tiny", tmp_path))
        finally:
            tmp_path.chmod(0o755)


def test_a_disk_that_takes_no_more_is_reported_and_nothing_stays_on_it(tmp_path):
    """A limit on the size of a file stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"in {tmp_path} cannot be written: File too large"):
            tfds.prepare("tiny", tmp_path, say=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == [tfds.LOCK]
    tfds.prepare("tiny", tmp_path, say=silent)
    assert_is_tiny(tfds.load("tiny", tmp_path))


def test_a_place_where_no_folder_can_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        tfds.prepare("tiny", tmp_path / "file" / "data", say=silent)


@needs_originals
def test_fashion_mnist_is_downloaded_verified_and_prepared_where_there_is_a_network(
    tmp_path, monkeypatch
):
    """A proxy on this machine stands in for the network and hands out the original files.

    About twenty seconds; .ci/run prepares them with --from.
    """

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with (ORIGINALS / Path(self.path).name).open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

        def log_message(self, *_):
            pass

    class QuietServer(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # the probe hangs up without reading the file
            pass

    settings = config.DataSettings(data_dir=tmp_path, cache_dir=tmp_path / "cache")
    with QuietServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        told = []
        said = data.prepare(settings, None, say=told.append)
        server.shutdown()
    assert said == f"prepared fashion_mnist/3.0.1 in {tmp_path}"
    assert told[0].startswith("downloading and preparing fashion_mnist/3.0.1")

    described = data.describe(settings, say=silent)
    assert described["train"] == "60,000 images"
    assert described["test"] == "10,000 images"
    assert described["pixels"] == "mean 0.28604, standard deviation 0.35302, of 1"
    assert described["a class"] == "6,000 images in train, 1,000 images in test"
    assert "is prepared already" in data.prepare(settings, ORIGINALS, say=silent)


def test_a_tilde_in_the_folder_of_the_data_stands_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    builder = tfds._builder("mnist", Path("~/sets"))
    assert str(builder.data_path).startswith(f"{tmp_path}/sets/mnist")
