"""The user's own images: folders, npz files and arrays, from the first byte to a resumed run."""

import io
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import faults
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import epochs_printed, resolve, resolve_small, resume_run, train_run
from PIL import Image

import plateau_train as pt
from plateau_train import config, data
from plateau_train.api import evaluation, listing, replays, sweeps
from plateau_train.config import RawValue
from plateau_train.data import arrays, images
from plateau_train.errors import (
    ChangedSettingsError,
    ConfigError,
    DataError,
    DataUnavailableError,
    RunError,
)
from plateau_train.run.directory import SWEEP, RunDirectory
from plateau_train.training import sweep
from plateau_train.training.devices import use_process
from plateau_train.training.sweep import LoadedDatasets

pytestmark = pytest.mark.usefixtures("no_saved_plots")

CACHE = os.environ["PLATEAU_TRAIN_CACHE_DIR"]
CLASSES = ("cat", "dog", "owl")
NUM_IMAGES = {"train": 8, "val": 2, "test": 3}  # of each class

# A small network, which learns the classes by their brightness.
TINY = {
    "batch_size": "6", "hidden_sizes": "", "accumulation_size": "2", "learning_rate": "0.05",
    "train_examples": "1000", "test_examples": "1000", "patience": "2", "quiet": "true",
    "cache_dir": CACHE,
}  # fmt: skip


def draw(num_images, *, seed=0, shape=(4, 5)):
    """Draw images of three classes, one after the other, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), num_images)
    noise = random.integers(0, 60, (len(labels), *shape), np.uint8)
    brightness = (80 * labels).astype(np.uint8).reshape(-1, *[1] * len(shape))
    return noise + brightness, labels


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_folder(root, splits=NUM_IMAGES, *, classes=CLASSES, suffix=".png", shape=(4, 5)):
    """Write a folder with the images of ``draw``, the last one first."""
    for seed, (split, num_images) in enumerate(splits.items()):
        pixels, labels = draw(num_images, seed=seed, shape=shape)
        for index in reversed(range(len(labels))):
            save(root / split / classes[labels[index]] / f"{index:03}{suffix}", pixels[index])
    return root


def arrays_of(splits=NUM_IMAGES):
    return {split: draw(number, seed=seed) for seed, (split, number) in enumerate(splits.items())}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of images in three splits."""
    return write_folder(tmp_path_factory.mktemp("images") / "pets")


def settings_of(path, **values):
    values = {"batch_size": "2", "cache_dir": CACHE} | values
    return resolve(dataset=f"{path}", **values).settings.data


def load(path, **values):
    return data.load(settings_of(path, **values))


def assert_same_dataset(actual, expected):
    assert actual.sha256 == expected.sha256
    assert actual.class_names == expected.class_names
    for split in ("train", "val", "test"):
        for one, other in zip(getattr(actual, split), getattr(expected, split), strict=True):
            assert np.array_equal(one, other), split


def refused(call, *arguments: Any, kind: Any = DataError, **keywords: Any):
    """Return the problems and the hint of an error."""
    with pytest.raises(kind) as error:
        call(*arguments, **keywords)
    return "; ".join(error.value.problems), error.value.hint


def ids_of(cases):
    """Return the problem of each case: its other values are long, or differ between processes."""
    return [case[1] for case in cases]


def test_a_folder_is_read_in_sorted_order_with_its_classes_and_splits(pets):
    dataset = load(pets)
    assert (dataset.name, dataset.source) == ("pets", str(pets))
    assert (dataset.class_names, dataset.image_shape) == (CLASSES, (4, 5, 1))
    for split, (pixels, labels) in arrays_of().items():
        assert np.array_equal(getattr(dataset, split).images[..., 0], pixels), split
        assert getattr(dataset, split).labels.tolist() == labels.tolist(), split


@pytest.mark.parametrize("naming", [arrays.KERAS, arrays.MEDMNIST], ids=["keras", "medmnist"])
@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
def test_an_npz_file_holds_the_same_data_set_as_a_folder(tmp_path, pets, naming, save_arrays):
    members = {}
    for split, (pixels, labels) in arrays_of().items():
        names = np.array(CLASSES)[labels]
        members |= dict(zip(naming[split], (pixels, names), strict=True))
        if naming is arrays.MEDMNIST:
            members |= dict(zip(naming[split], (pixels[..., None], names[:, None]), strict=True))
    save_arrays(tmp_path / "pets.npz", **members)
    dataset = load(tmp_path / "pets.npz")
    assert dataset.name == "pets"
    assert_same_dataset(dataset, load(pets))


def test_files_that_systems_leave_in_folders_are_ignored(tmp_path, pets):
    copied = shutil.copytree(pets, tmp_path / "pets")
    for name in (".DS_Store", "train/.DS_Store", "train/cat/Thumbs.db", "test/dog/._0.png"):
        (copied / name).write_bytes(b"x")
    (copied / ".git" / "cat").mkdir(parents=True)
    (copied / "README.txt").write_text("beside the folders")
    assert_same_dataset(load(copied), load(pets))


def test_jpeg_files_and_colors_are_read(tmp_path):
    folder = write_folder(tmp_path / "jpegs", suffix=".JPG", shape=(8, 9, 3))
    dataset = load(folder)
    assert dataset.image_shape == (8, 9, 3)
    with Image.open(folder / "test" / "dog" / "003.JPG") as picture:
        assert np.array_equal(dataset.test.images[3], np.asarray(picture))


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([7, 3, 7, 11], ("3", "7", "11"), [1, 0, 1, 2]),
        (np.array([1, 0, 1, 0], np.uint8)[:, None], ("0", "1"), [1, 0, 1, 0]),
        (["owl", "cat", "owl", "cat"], ("cat", "owl"), [1, 0, 1, 0]),
        (["10", "9", "10", "9"], ("9", "10"), [1, 0, 1, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        (jnp.array([5, 5, 6, 5]), ("5", "6"), [0, 0, 1, 0]),
    ],
)
def test_labels_of_any_kind_become_numbers_in_the_order_of_their_names(labels, names, numbers):
    pixels = np.zeros((4, 2, 2), np.uint8)
    name = data.keep_arrays((pixels, labels, jnp.asarray(pixels), labels))
    dataset = load(name)
    assert dataset.class_names == names
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == numbers
    assert np.shares_memory(dataset.train.images, pixels), "arrays are not copied"


def png(**changes):
    """Return a PNG file of 4 x 5 pixels whose header differs from what it has."""
    fields = {"width": 5, "height": 4, "depth": 8, "color": 0} | changes
    header = struct.pack(">IIBBBBB", *fields.values(), 0, 0, 0)

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    rows = zlib.compress(bytes(4 * (1 + 5 * 6)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def encoded(mode, form="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, form, **options)
    return file.getvalue()


ANIMATED = encoded("L", save_all=True, append_images=[Image.new("L", (5, 4), 9)])
FIRST = "train/cat/000.png"

BAD_FILES = [
    (png(width=6), "is 6x4 gray, and {first} is 5x4 gray"),
    (encoded("RGB"), "is 5x4 RGB, and {first} is 5x4 gray"),
    (encoded("P"), "has a palette"),
    (encoded("RGBA"), "has transparency (RGBA)"),
    (encoded("LA"), "has transparency (LA)"),
    (encoded("1"), "has 1 bit per value"),
    (encoded("I;16"), "has 16 bits per value"),
    (png(depth=16, color=2), "has 16 bits per value"),
    (encoded("CMYK", "JPEG"), "has CMYK colors"),
    (encoded("L", transparency=0), "has transparency"),
    (ANIMATED, "has 2 frames"),
    (encoded("L", "GIF"), "is neither PNG nor JPEG, or damaged"),
    (b"", "is neither PNG nor JPEG, or damaged"),
    (encoded("L")[:45], "cannot be read: image file is truncated"),
    (encoded("L", "JPEG")[:-5], "cannot be read: image file is truncated ("),
    (png(width=9_999, height=9_999), "is 9999x9999, more than 16,777,216 pixels"),
    (png(width=99_999, height=99_999), "cannot be read: Image size (9999800001 pixels) exceeds"),
]


@pytest.mark.parametrize(("content", "problem"), BAD_FILES, ids=ids_of(BAD_FILES))
def test_an_image_that_cannot_be_used_is_refused_by_its_name(tmp_path, pets, content, problem):
    copied = shutil.copytree(pets, tmp_path / "pets")
    bad = copied / "test" / "dog" / "004.png"
    bad.write_bytes(content)
    problems, hint = refused(load, copied)
    assert problems.startswith(f"{bad} {problem.format(first=copied / FIRST)}")
    assert hint == "save all images as 8-bit gray or RGB, PNG or JPEG, of one size"


def test_the_first_files_that_cannot_be_used_are_named_together(tmp_path, pets):
    copied = shutil.copytree(pets, tmp_path / "pets")
    for name in ("train/cat/000.png", "train/cat/002.png", "val/owl/004.png", "val/owl/005.png"):
        (copied / name).write_bytes(b"")
    problems, _ = refused(load, copied)
    paths = [
        copied / name for name in ("train/cat/000.png", "train/cat/002.png", "val/owl/004.png")
    ]
    assert problems == "; ".join(f"{path} is neither PNG nor JPEG, or damaged" for path in paths)


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


BAD_FOLDERS = [
    (lambda root: shutil.rmtree(root), " does not exist"),
    (lambda root: (root / "test/cat/a.gif").write_bytes(b""), "/test/cat/a.gif is neither PNG nor"),
    (lambda root: (root / "test/cat/a.txt").write_bytes(b""), "/test/cat/a.txt is neither PNG nor"),
    (lambda root: (root / "test/cat/a.png").mkdir(), "/test/cat/a.png is not a file"),
    (lambda root: (root / "test/a.png").write_bytes(b""), "/test/a.png is not in the folder of a"),
    (lambda root: empty(root / "test/cat"), "/test/cat has no images"),
    (lambda root: empty(root / "test"), "/test has no folder for each class"),
    (lambda root: empty(root), " has no folder for each class"),
    (lambda root: shutil.rmtree(root / "test"), " has no test images"),
    (lambda root: shutil.rmtree(root / "train"), " has a folder test, val and no folder train"),
    (lambda root: (root / "extra").mkdir(), " has the folder extra beside train, which is not"),
    (lambda root: shutil.rmtree(root / "train/dog"), "class dog is in val, and not in train"),
]


@pytest.mark.parametrize(("change", "problem"), BAD_FOLDERS, ids=ids_of(BAD_FOLDERS))
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(tmp_path, pets, change, problem):
    copied = shutil.copytree(pets, tmp_path / "pets")
    change(copied)
    problems, _ = refused(load, copied)
    assert problems.removeprefix(str(copied)).startswith(problem)


def test_a_class_whose_name_is_not_utf8_is_refused(tmp_path):
    """No file of a run could hold it."""
    folder = write_folder(tmp_path / "flat", {"": 4})
    (folder / "owl").rename(os.fsdecode(bytes(folder / "owl") + b"\xff"))
    problems, hint = refused(load, folder, test_fraction="0.5")
    assert problems == "the name of class owl\udcff is not UTF-8"
    assert hint == "give it another name"


def test_images_of_one_class_are_refused(tmp_path):
    write_folder(tmp_path / "one", {"": 3})
    for name in ("cat", "dog"):
        shutil.rmtree(tmp_path / "one" / name)
    problems, _ = refused(load, tmp_path / "one", test_fraction="0.4")
    assert problems == "there is only one class, owl"


PIXELS, LABELS = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 0, 1])
GOOD = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS, "y_test": LABELS}
NANS = np.array([0, 1, np.nan, 1])

BAD_ARRAYS = [
    ({"x_train": PIXELS / 255}, "x_train has the type float64, not uint8", "255 * images"),
    ({"x_train": PIXELS.astype(int)}, "x_train has the type int64, not uint8", "from 0 to 255"),
    ({"x_train": PIXELS > 0}, "x_train has the type bool, not uint8", "255 * images"),
    ({"x_train": PIXELS[0]}, "x_train has the shape (2, 2)", "(n, height, width)"),
    ({"x_train": PIXELS[:0]}, "x_train has no images: its shape is (0, 2, 2, 1)", "uint8"),
    ({"x_train": PIXELS[..., None].repeat(4, 3)}, "x_train has the shape (4, 2, 2, 4)", "1 or 3"),
    ({"x_train": np.zeros((4, 3, 8, 8), np.uint8)}, "x_train has the shape", "transpose(0, 2, 3"),
    (
        {"x_test": np.zeros((4, 2, 3), np.uint8)},
        "x_test has images of 3x2 gray, and x_train of",
        "",
    ),
    ({"x_test": np.zeros((4, 2, 2, 3), np.uint8)}, "x_test has images of 2x2 RGB, and x_train", ""),
    ({"x_train": [[1], [1, 2]]}, "x_train is not an array", "uint8"),
    ({"y_train": LABELS[:3]}, "y_train has 3 labels for the 4 images of x_train", "one label per"),
    ({"y_train": np.eye(4)}, "y_train has the shape (4, 4)", "argmax"),
    ({"y_train": NANS}, "y_train has no label for image 2: it is NaN", "one label per image"),
    ({"y_train": LABELS / 2}, "y_train has the type float64", "labels.astype(int)"),
    ({"y_train": np.array(["a", 1, 2, 3], object)}, "y_train has Python objects", "astype(str)"),
    ({"y_test": LABELS + 1}, "class 2 is in test, and not in train", "leave it out"),
    ({"y_test": LABELS.astype(str)}, "y_test has the type <U21, and y_train int64", ""),
    ({"y_train": LABELS * 0, "y_test": LABELS * 0}, "there is only one class, 0", "two or more"),
]


@pytest.mark.parametrize(("change", "problem", "hint"), BAD_ARRAYS, ids=ids_of(BAD_ARRAYS))
def test_arrays_that_cannot_be_used_are_refused_also_in_a_file(tmp_path, change, problem, hint):
    given: Any = GOOD | change
    problems, own_hint = refused(data.keep_arrays, tuple(given.values()))
    assert problems.startswith(problem)
    assert hint in own_hint
    if not any(isinstance(array, list) or array.dtype == object for array in change.values()):
        np.savez(tmp_path / "bad.npz", **given)
        problems, own_hint = refused(load, tmp_path / "bad.npz")
        assert problems.removeprefix(f"{tmp_path / 'bad.npz'}: ").startswith(problem)
        assert hint in own_hint


def test_a_wrong_number_of_arrays_is_refused():
    for given, number in (((PIXELS, LABELS), 2), (PIXELS, 1)):
        problems, _ = refused(pt.describe_data, dataset=given)
        assert problems == f"a data set is 4 or 6 arrays, got {number}"


def write_huge(path):
    """Write a small file whose images would take terabytes."""
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 28, 28)}
    np.lib.format.write_array_header_1_0(header, fields)
    members: Any = {name: array for name, array in GOOD.items() if name != "x_train"}
    np.savez(path, **members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", header.getvalue())


OBJECTS: Any = GOOD | {"y_test": np.array([{}] * 4)}

BAD_NPZ = [
    (lambda path: path.write_bytes(b"abc"), " cannot be read: it is not an .npz file, or damaged"),
    (lambda path: np.savez(path, **OBJECTS), ": y_test has Python objects, which are not read"),
    (lambda path: np.savez(path, a=LABELS, b=LABELS), " has no x_train or train_images, only a, b"),
    (lambda path: np.savez(path, x_train=PIXELS, y_train=LABELS), " has no test images"),
    (lambda path: np.savez(path, **GOOD, x_val=PIXELS), ": it has x_val and no y_val"),
    (lambda path: np.savez(path, x_train=PIXELS, x_test=PIXELS), ": it has x_train and no y_train"),
    (write_huge, ": x_train needs 784 GB, and this machine has"),
]


@pytest.mark.parametrize(("write", "problem"), BAD_NPZ, ids=ids_of(BAD_NPZ))
def test_an_npz_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path, write, problem):
    path = tmp_path / "images.npz"
    write(path)
    problems, hint = refused(load, path)
    assert problems.startswith(f"{path}{problem}")
    assert hint


def test_a_damaged_npz_file_is_refused(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, **GOOD)
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 140] ^= 1  # a pixel
    path.write_bytes(content)
    problems, _ = refused(load, path)
    assert problems == f"{path}: x_train cannot be read: Bad CRC-32 for file 'x_train.npy'"


def test_test_images_are_held_out_of_each_class(tmp_path):
    folder = write_folder(tmp_path / "flat", {"": 10})
    dataset = load(folder, test_fraction="0.2")
    assert np.bincount(dataset.train.labels).tolist() == [8] * 3
    assert np.bincount(dataset.test.labels).tolist() == [2] * 3
    pixels, _ = draw(10)
    both = np.concatenate([dataset.train.images, dataset.test.images])[..., 0]
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in pixels)
    again = load(folder, test_fraction="0.2", val_fraction="0.25")
    assert np.array_equal(again.test.images, dataset.test.images)
    assert again.val is not None
    assert len(load(folder, test_fraction="0.4").test.labels) == 12, "the cache has another part"


@pytest.mark.parametrize(
    ("split", "fraction", "problem"),
    [
        ("", "0.01", "--test-fraction 0.01 holds out none of 30 images"),
        ("", "0.99", "--test-fraction 0.99 holds out all images of a class of 10"),
        ("train", "0", "{path} has no test images"),
        ("test", "0.2", "--test-fraction 0.2 has no meaning for {path}: it has test images"),
    ],
)
def test_a_test_fraction_that_cannot_be_used_is_refused(tmp_path, split, fraction, problem):
    folder = write_folder(
        tmp_path / "flat", {split: 10} | ({"train": 10} if split == "test" else {})
    )
    problems, _ = refused(load, folder, test_fraction=fraction, kind=(ConfigError, DataError))
    assert problems == problem.format(path=folder)


def test_images_are_decoded_once_and_again_after_a_change(tmp_path, monkeypatch, pets):
    copied, calls = shutil.copytree(pets, tmp_path / "pets"), []
    first = data.load(settings_of(copied), lambda *numbers: calls.append(numbers))
    assert calls[-1] == (39, 39)
    assert first.val is not None
    with monkeypatch.context() as patch:
        patch.setattr(images, "_decode", None)
        assert_same_dataset(load(copied), first)
    Image.new("L", (5, 4), 255).save(copied / FIRST)
    changed = load(copied)
    assert changed.train.images[0].min() == 255
    assert changed.sha256 != first.sha256


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/b", "/a/b"), ("./images", "{cwd}/images"), ("../x", "{parent}/x"), ("~/x", "{home}/x"),
        ("images.npz", "{cwd}/images.npz"), ("images/", "{cwd}/images"), (".", "{cwd}"),
        ("images/my pets", "{cwd}/images/my pets"), ("images", None), ("mnist/other", None),
        ("arrays-0123456789ab", None),
    ],
)  # fmt: skip
def test_a_word_is_a_name_and_what_looks_like_a_path_or_exists_is_one(
    tmp_path, monkeypatch, text, path
):
    (tmp_path / "images" / "my pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    places = {"cwd": tmp_path, "parent": tmp_path.parent, "home": Path.home()}
    settings = resolve(dataset=text).settings.data
    assert settings.path == (path and Path(path.format(**places)))
    assert settings.dataset == (text if path is None else str(settings.path))


def test_what_is_no_name_is_refused_with_the_path_of_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "My-Pets").mkdir()
    monkeypatch.chdir(tmp_path)
    problems, _ = refused(resolve, dataset="My-Pets", kind=ConfigError)
    assert problems.endswith("got My-Pets (did you mean ./My-Pets?)")
    refused(resolve, dataset="nowhere/My Pets", kind=ConfigError)


@pytest.mark.parametrize(
    ("before", "after", "is_refused"),
    [
        ("/a", "/b", False), ("mnist", "/b", True), ("/a", "mnist", True), ("mnist", "a", True),
        ("/a/x.py:NET", "/b/x.py:NET", False), ("/a/x.py:NET", "/b/x.py:OTHER", True),
    ],
)  # fmt: skip
def test_only_a_path_can_become_another_path_on_resume(before, after, is_refused):
    settings = resolve(dataset=before), resolve(dataset=after)
    if is_refused:
        with pytest.raises(ChangedSettingsError) as error:
            config.merge(*settings, problem="", hint="")
        assert error.value.table[1] == ("--dataset", before, after, "it would change the results")
    else:
        assert config.merge(*settings, problem="", hint="").settings.data.dataset == after


def test_a_data_set_with_validation_images_takes_no_others(pets):
    problems, hint = refused(load, pets, val_fraction="0.1", kind=ConfigError)
    assert problems.startswith("pets has 6 validation images of its own, and --val-fraction 0.1")
    assert hint == "leave out --val-fraction"


def test_images_without_validation_are_refused_in_a_val_mode_before_a_folder_is_made(tmp_path):
    flat = write_folder(tmp_path / "flat", {"train": 8, "test": 2})
    values = TINY | {"dataset": str(flat), "mode": "val-loss"}
    problems, hint = refused(train_run, tmp_path / "runs", **values, kind=ConfigError)
    assert problems == (
        "--mode val-loss needs held-out images, and flat has no validation images of its own"
    )
    assert hint == "add --val-fraction 0.1"
    assert not (tmp_path / "runs").exists()


def test_few_images_of_a_sorted_folder_are_chosen_from_all_classes(pets):
    whole, few = load(pets), load(pets, train_examples="10", test_examples="6")
    assert np.bincount(few.train.labels).min() > 0
    assert np.bincount(few.test.labels, minlength=3).min() > 0
    rows = [whole.train.images.tobytes().find(image.tobytes()) for image in few.train.images]
    assert rows == sorted(set(rows)), "another order than in the folder, or an image twice"


def test_classes_without_a_training_image_are_reported(pets, messages):
    load(pets, train_examples="2")
    assert messages[-1].startswith("1 of 3 classes have no training image")


def test_a_folder_is_described_and_needs_no_preparation(pets):
    settings = settings_of(f"{pets}/")
    facts = data.describe(settings)
    assert [facts[name] for name in ("name", "train", "val", "test", "classes", "per class")] == [
        "pets", "24 images", "6 images", "9 images", "3: cat, dog, owl",
        "8 images in train, 2 images in val, 3 images in test",
    ]  # fmt: skip
    assert data.prepare(settings).startswith(f"{pets} needs no preparation")
    for call in (data.prepare, data.describe):
        problems, hint = refused(call, settings_of("./nowhere"), kind=DataUnavailableError)
        assert problems.endswith("/nowhere does not exist")
        assert hint == "give a folder or an .npz file: --dataset PATH"


def test_a_run_on_a_folder_is_stopped_resumed_and_scored_like_one_never_stopped(
    processes, tmp_path, pets
):
    shutil.copytree(pets, tmp_path / "pets")
    flags = [f"--{name.replace('_', '-')}={text}" for name, text in TINY.items() if name != "quiet"]
    val = ("--mode=val-loss", "--accumulation-size=1")
    settings = ("--dataset=./pets", *flags, *val, "--epochs=3")
    expected, _ = faults.unbroken(processes, tmp_path, settings)
    shutil.copytree(pets, tmp_path / "stopped" / "pets")
    stopped = processes.run(tmp_path / "stopped", *settings, fault="crash", at="epoch-000002")
    assert "loading" not in stopped.stdout + stopped.stderr, "no bar without a terminal"
    assert "pets: 24 training, 6 validation, 9 test images of 4x5x1" in stopped.stderr
    (run,) = faults.runs_in(tmp_path / "stopped")
    again = processes.run(tmp_path, "resume", run)  # in another folder
    assert again.code == 0, again.stderr
    assert epochs_printed(again.stdout) == [2, 3]
    assert faults.result_of(run) == expected
    scored = processes.run(tmp_path, "evaluate", run)
    assert scored.code == 0, scored.stderr
    assert "(6 images)" in scored.stdout


@pytest.fixture
def moved_run(tmp_path, pets):
    """A run whose images have moved, and their new path."""
    before = shutil.copytree(pets, tmp_path / "before" / "pets")
    run = train_run(tmp_path / "runs", **TINY, epochs="1", dataset=str(before))
    return run, before.rename(tmp_path / "animals")


def test_images_that_have_moved_are_given_again_and_others_are_refused(tmp_path, moved_run):
    run, after = moved_run
    _, hint = refused(resume_run, run, cache_dir=CACHE, epochs="2", kind=DataUnavailableError)
    assert hint == "give the path that they have now: --dataset PATH"
    other = write_folder(tmp_path / "other", {"train": 9, "test": 3})
    problems, hint = refused(resume_run, run, cache_dir=CACHE, epochs="2", dataset=str(other))
    assert problems.startswith(f"{run.directory.path} was trained on pets of SHA-256")
    assert hint.endswith("--dataset PATH")
    assert (
        resume_run(run, cache_dir=CACHE, epochs="2", dataset=str(after), quiet="true").results.epoch
        == 2
    )
    assert resume_run(run, cache_dir=CACHE, epochs="3", quiet="true").results.epoch == 3, (
        "the new path is kept"
    )
    (listed,) = listing.list_runs(tmp_path / "runs")
    assert listing.COLUMNS[3].text_of(listed) == "animals"
    assert replays.read_run(run, {}, "val-loss", None).observed == "val loss"


def test_moved_images_are_scored_and_without_validation_nothing_is_replayed(tmp_path, moved_run):
    run, after = moved_run
    scored = pt.load(run.directory.path).evaluate(dataset=after)
    assert (scored.dataset, scored.source) == ("animals", str(after))
    assert {split: score.num_images for split, score in scored.scores.items()} == {
        "val": 6,
        "test": 9,
    }
    with pytest.raises(ChangedSettingsError):
        evaluation.evaluate(run.directory.path, resolve(dataset="mnist"), use_process)
    shutil.rmtree(after / "val")
    plain = train_run(tmp_path / "plain", **TINY, epochs="1", dataset=str(after))
    problems, _ = refused(replays.read_run, plain, {}, "val-loss", None, kind=RunError)
    assert problems.endswith("held out no images for val-loss")


def test_a_sweep_over_a_folder_is_sorted_by_its_validation_images(tmp_path, pets):
    def plan(*paths, metric=None):
        given = resolve_small(**TINY).origins
        flags = {key: TINY[key] for key in given if key in TINY} | {"patience": "1,2"}
        flags |= {"dataset": ",".join(map(str, paths)), "runs_dir": str(tmp_path)}
        raw = {key: RawValue(text, "flag") for key, text in flags.items()}
        return sweep.make_plan(config.resolve_sweep(raw), metric, LoadedDatasets())

    whole = plan(pets)
    assert whole.metric == "val-accuracy"
    assert sweep.SweepPlan.model_validate_json(whole.model_dump_json()) == whole
    plain = write_folder(tmp_path / "garments", {"train": 8, "test": 2})
    both = plan(pets, plain)
    assert both.metric == "test-accuracy", "not all runs have validation images"
    assert both.runs[2].folder == "003-dataset=garments,patience=1"
    assert (
        "needs held-out images in every run"
        in refused(plan, plain, metric="val-loss", kind=ConfigError)[0]
    )
    (tmp_path / SWEEP).write_text(both.model_dump_json())
    results = sweeps.read(tmp_path)
    assert [results.as_table().columns[0].text_of(run) for run in results.ranked] == [
        "pets", "pets", "garments", "garments",
    ]  # fmt: skip
    assert sweeps._make_grid(results).rows == ["pets", "garments"]
    moved = resolve(dataset=str(tmp_path / "elsewhere"))
    merged = sweep.merge_settings(whole, moved, RunDirectory(tmp_path))
    assert merged.runs[1].settings.data.path == tmp_path / "elsewhere"
    with pytest.raises(ChangedSettingsError):
        sweep.merge_settings(both, moved, RunDirectory(tmp_path))


def test_a_path_with_the_name_of_a_built_in_set_is_not_taken_for_it(tmp_path):
    """The last data set that was loaded is kept under its name."""
    own = write_folder(tmp_path / "garments", {"train": 8, "test": 2})
    datasets = LoadedDatasets()
    few = TINY | {"train_examples": "60", "test_examples": "30"}
    first = datasets.load(resolve(**few, dataset=str(own)).settings)
    second = datasets.load(resolve(**few, dataset="garments").settings)
    assert (len(first.class_names), len(second.class_names)) == (3, 10)


def test_arrays_are_trained_scored_and_given_again(tmp_path):
    given = tuple(array for split in arrays_of().values() for array in split)
    values: Any = TINY | {"runs_dir": tmp_path, "dataset": given, "epochs": 1}
    run = pt.train(**values)
    assert run.settings["dataset"].startswith("arrays-")
    assert run.evaluate().scores["val"].num_images == 6
    assert run.resume(epochs=2, quiet=True).summary["epochs"] == 2
    pt.describe_data(dataset=(PIXELS, LABELS, PIXELS, LABELS))  # these are kept instead
    problems, hint = refused(run.evaluate, kind=DataUnavailableError)
    assert problems.endswith("stands for arrays that are not in the memory of this process")
    assert hint == "give the arrays again in Python: dataset=(x_train, y_train, x_test, y_test)"
    assert run.resume(epochs=3, quiet=True, dataset=given).summary["epochs"] == 3
    pt.describe_data(dataset=(PIXELS, LABELS, PIXELS, LABELS))
    assert run.evaluate(dataset=given).scores["test"].num_images == 9
    refused(run.resume, epochs=4, dataset=given[:4], kind=ChangedSettingsError)


def test_a_path_object_is_a_path_also_if_its_text_is_a_name(tmp_path, monkeypatch, pets):
    monkeypatch.chdir(pets.parent)
    assert pt.describe_data(dataset=Path("pets"))["source"] == str(pets)
    settings = pt.resolve_settings(dataset=Path("pets"))
    assert settings["dataset"] == str(pets)


def test_images_to_predict_are_read_from_files_folders_and_arrays(tmp_path, pets):
    pixels, _ = draw(NUM_IMAGES["test"], seed=2)
    np.savez(tmp_path / "some.npz", pixels=pixels[:2], other=LABELS)
    sources = [pets / "test", pets / "val" / "cat" / "000.png", tmp_path / "some.npz"]
    names, batch = images.read_images(sources, (4, 5, 1), resize=False)
    assert names[0] == str(pets / "test" / "cat" / "000.png")
    assert names[-1] == f"{tmp_path / 'some.npz'}: pixels[1]"
    assert np.array_equal(batch[:9, ..., 0], pixels)
    assert np.array_equal(batch[10:, ..., 0], pixels[:2])
    _, colors = images.read_images(sources, (4, 5, 3), resize=False)
    assert np.array_equal(colors, batch.repeat(3, axis=3))


def test_images_to_predict_are_made_gray_and_resized_as_pillow_does(tmp_path):
    save(tmp_path / "big.png", draw(1, shape=(9, 7, 3))[0][0])
    problems, hint = refused(images.read_images, [tmp_path / "big.png"], (4, 5, 1), resize=False)
    assert problems == f"{tmp_path / 'big.png'} is 7x9, and the run has images of 5x4"
    assert hint == "--resize resizes it"
    _, batch = images.read_images([tmp_path / "big.png"], (4, 5, 1), resize=True)
    with Image.open(tmp_path / "big.png") as picture:
        expected = picture.resize((5, 4), Image.Resampling.BILINEAR).convert("L")
    assert np.array_equal(batch[0, ..., 0], np.asarray(expected))


def test_sources_without_images_are_refused(tmp_path):
    np.savez(tmp_path / "none.npz", a=LABELS)
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, problem in {
        "nowhere.png": " does not exist",
        "empty": " has no PNG or JPEG files",
        "bad.png": " is neither PNG nor JPEG, or damaged",
        "none.npz": " has no images, x_test or test_images, only a",
    }.items():
        problems, _ = refused(images.read_images, [tmp_path / name], (4, 5, 1), resize=True)
        assert problems == f"{tmp_path / name}{problem}"
