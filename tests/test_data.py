import http.server
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ORIGINALS

from plateau_train import config, data
from plateau_train.data import tfds
from plateau_train.data.splits import Dataset, Split, share_out
from plateau_train.errors import ConfigError, DataError, DataUnavailableError

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
    shared = share_out(numbered(), config.Data(val_fraction=0.25, batch_size=10))
    assert shared.val is not None
    train, val = set(shared.train.labels.tolist()), set(shared.val.labels.tolist())
    assert (len(train), len(val)) == (75, 25)
    assert train | val == set(range(100))
    assert len(shared.test.labels) == 20
    assert val != set(range(75, 100)), "a set in the order of its classes would lose some"


def test_the_first_examples_are_used_when_fewer_are_asked_for():
    settings = config.Data(train_examples=30, test_examples=7, batch_size=10)
    shared = share_out(numbered(), settings)
    assert shared.train.labels.tolist() == list(range(30))
    assert shared.test.labels.tolist() == list(range(7))


def test_a_batch_that_is_larger_than_the_training_set_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"--batch-size 70,000 is larger than the 75 training"):
        share_out(numbered(), config.Data(batch_size=70_000, val_fraction=0.25))


@pytest.mark.parametrize(("fraction", "said"), [(0.001, "none"), (0.999, "all of them")])
def test_a_fraction_that_holds_out_nothing_or_everything_is_refused(fraction, said):
    with pytest.raises(ConfigError, match=rf"--val-fraction {fraction} of 100 .* holds out {said}"):
        share_out(numbered(), config.Data(val_fraction=fraction, batch_size=10))


def test_garments_can_be_loaded_in_part_and_begin_alike():
    few = data.load(
        config.Data(dataset="garments", train_examples=150, test_examples=10), say=silent
    )
    more = data.load(
        config.Data(dataset="garments", train_examples=300, test_examples=10), say=silent
    )
    assert len(few.train.labels) == 150
    assert np.array_equal(few.train.images, more.train.images[:150])
    assert not few.fallback


def test_auto_falls_back_to_garments_and_says_what_was_tried(tmp_path, no_network):
    settings = config.Data(dataset="auto", data_dir=tmp_path, train_examples=200, test_examples=10)
    started = time.monotonic()
    dataset = data.load(settings, say=silent)
    assert time.monotonic() - started < 10
    assert dataset.name == "garments"
    assert f"fashion_mnist is not prepared in {tmp_path}" in dataset.fallback
    assert "cannot be downloaded from http" in dataset.fallback


def test_a_named_set_never_falls_back(tmp_path, no_network):
    settings = config.Data(dataset="fashion_mnist", data_dir=tmp_path)
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
            data.load(config.Data(dataset="fashion_mnist", data_dir=tmp_path), say=silent)
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
        data.load(config.Data(dataset=name, data_dir=tmp_path), say=silent)
    assert said in refused.value.problems[0]


def test_original_files_that_are_missing_or_cut_short_are_refused_by_name(tmp_path):
    cut = tmp_path / "train-labels-idx1-ubyte.gz"
    cut.write_bytes(b"\0" * 100)
    with pytest.raises(DataError) as refused:
        data.prepare(config.Data(data_dir=tmp_path / "data"), tmp_path, say=silent)
    said = "\n".join(refused.value.problems)
    assert f"{cut} has 100 bytes, the original has 29,515" in said
    assert f"{tmp_path / 'train-images-idx3-ubyte.gz'} does not exist" in said
    assert not (tmp_path / "data" / "fashion_mnist").exists()


def test_an_original_file_of_the_right_size_with_other_bytes_is_refused_by_name(tmp_path):
    wrong = tmp_path / "t10k-labels-idx1-ubyte.gz"
    wrong.write_bytes(b"\0" * 5148)
    with pytest.raises(DataError) as refused:
        data.prepare(config.Data(data_dir=tmp_path / "data"), tmp_path, say=silent)
    assert f"{wrong} is damaged" in "\n".join(refused.value.problems)


def test_a_set_of_tensorflow_datasets_is_read_whole_and_in_order(tmp_path):
    """The same code on a small set that the test makes: no network, no original files."""
    tensorflow_datasets = tfds.tfds
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)

    class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

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
                yield number, {"picture": images[number], "kind": number % 2}

    dataset = tfds.load("tiny", tmp_path, say=silent)
    assert np.array_equal(dataset.train.images, images[:30])
    assert np.array_equal(dataset.test.images, images[30:])
    assert dataset.test.labels.tolist() == [0, 1] * 5
    assert dataset.test.labels.dtype == np.int32
    assert (dataset.class_names, dataset.image_shape) == (("x", "y"), (6, 5, 3))

    for file in (tmp_path / "tiny" / "1.0.0").glob("*train.tfrecord*"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        tfds.load("tiny", tmp_path, say=silent)


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

    settings = config.Data(data_dir=tmp_path)
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
