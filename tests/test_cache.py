"""Decoded data sets are kept: a start finds them, or decodes anew, and never finds other data."""

import contextlib
import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from plateau_train import config, data
from plateau_train.data import cache, garments
from plateau_train.data.splits import Dataset, Split


def a_set(seed=0):
    bits = np.random.default_rng(seed)

    def split(num_examples):
        images = bits.integers(0, 256, (num_examples, 3, 2, 1), np.uint8)
        return Split(images, np.arange(num_examples, dtype=np.int32))

    return Dataset("small", "a test", ("a", "b ü"), split(5), split(2))


def content(dataset):
    return dataset.name, dataset.source, dataset.class_names, dataset.sha256()


def same():
    return "the fingerprint"


@pytest.fixture
def kept(tmp_path):
    """The file of a set that was kept."""
    path = cache.place(tmp_path / "new" / "cache", "small", tmp_path)
    cache.write(path, same(), a_set())
    return path


def test_what_is_kept_comes_back_and_is_a_plain_npz(kept):
    found = cache.read(kept, same)
    assert found is not None
    assert content(found) == content(a_set())
    with np.load(kept, allow_pickle=False) as stored:
        assert np.array_equal(stored["train/images"], a_set().train.images)
    assert os.listdir(kept.parent) == [kept.name]


def test_a_set_is_kept_for_each_name_and_each_folder(tmp_path):
    origin = tmp_path / "small"
    places = {
        cache.place(tmp_path, "small", origin),
        cache.place(tmp_path, "small:1.0.0", origin),
        cache.place(tmp_path, "small", tmp_path / "elsewhere" / "small"),
    }
    assert len(places) == 3
    assert {path.parent for path in places} == {tmp_path}


def test_what_was_made_from_other_files_is_not_taken(kept):
    assert cache.read(kept, lambda: "another") is None
    cache.write(kept, "another", a_set(1))
    assert cache.read(kept, same) is None
    assert os.listdir(kept.parent) == [kept.name], "the old one is replaced"


def test_what_another_format_was_written_in_is_not_taken(kept, monkeypatch):
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert cache.read(kept, same) is None


def test_no_flipped_bit_and_no_cut_brings_other_data(kept):
    """Some bits of a zip mean nothing; then the data is what it was."""
    whole, expected = kept.read_bytes(), content(a_set())
    misses = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        kept.write_bytes(damaged)
        found = cache.read(kept, same)
        assert found is None or content(found) == expected, position
        misses += found is None
    assert misses > len(whole) / 2
    for size in range(0, len(whole), 7):
        kept.write_bytes(whole[:size])
        assert cache.read(kept, same) is None, size


def with_other_arrays(path):
    """What the digest is not of, though the zip and each array in it are sound."""
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["test/labels"] = arrays["test/labels"][::-1].copy()
    with path.open("wb") as file:
        np.savez(file, **arrays)


def with_objects(path):
    np.savez(path, allow_pickle=True, manifest=np.array({"format": cache.FORMAT}, dtype=object))


def with_an_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def with_one_array(path):
    with path.open("wb") as file:
        np.savez(file, images=np.zeros(3))


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        with_other_arrays,
        with_objects,
        a_folder,
        a_pipe,
        Path.unlink,
        with_an_array,
        with_one_array,
        lambda path: path.write_text("not ours"),
    ],
    ids=["arrays", "objects", "folder", "pipe", "nothing", "npy", "npz", "text"],
)
def test_what_is_not_ours_is_not_taken_and_is_replaced(kept, damage):
    damage(kept)
    assert cache.read(kept, same) is None
    cache.write(kept, same(), a_set())
    assert kept.is_dir() or content(cache.read(kept, same)) == content(a_set())
    assert os.listdir(kept.parent) == [kept.name]


@contextlib.contextmanager
def a_file_above(folder):
    folder.parent.mkdir(parents=True)
    folder.touch()
    yield
    folder.unlink()


@contextlib.contextmanager
def no_right_to_write(folder):
    """Root may write everywhere, hence a folder that the kernel keeps for itself."""
    folder.parent.mkdir(parents=True)
    folder.symlink_to("/proc/self")
    yield
    folder.unlink()


@pytest.mark.parametrize("refusing", [a_file_above, no_right_to_write])
def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path, refusing):
    path = tmp_path / "new" / "cache" / "small.npz"
    with refusing(path.parent):
        cache.write(path, same(), a_set())
        assert cache.read(path, same) is None
        assert not path.parent.is_dir() or not list(path.parent.glob(".plateau-train-*"))
    cache.write(path, same(), a_set())
    assert cache.read(path, same) is not None


def test_a_disk_that_is_full_at_any_moment_keeps_what_it_had(kept):
    """A limit on the size of a file stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for num_bytes in range(0, kept.stat().st_size, 50):
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
        try:
            cache.write(kept, same(), a_set(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(kept.parent) == [kept.name]
    assert content(cache.read(kept, same)) == content(a_set())


def test_many_that_fill_and_read_at_once_see_one_whole_set_or_none(tmp_path):
    path, expected = tmp_path / "small.npz", {content(a_set(seed)) for seed in (0, 1)}
    seen = []

    def fill_and_read(seed):
        for _ in range(30):
            cache.write(path, same(), a_set(seed))
            seen.append(cache.read(path, same))

    threads = [threading.Thread(target=fill_and_read, args=(seed,)) for seed in (0, 1) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 120
    assert None not in seen, "a file that is replaced is there at every moment"
    assert {content(found) for found in seen} <= expected
    assert os.listdir(tmp_path) == [path.name]


def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(kept):
    left, young, foreign = (
        kept.with_name(name) for name in (".plateau-train-1.tmp", ".plateau-train-2.tmp", "3.tmp")
    )
    for path in (left, young, foreign):
        path.touch()
    for path in (left, foreign):
        os.utime(path, (time.time() - 2 * cache.LEFTOVER_SECONDS,) * 2)
    cache.write(kept, same(), a_set())
    assert set(kept.parent.iterdir()) == {kept, young, foreign}


def test_every_file_of_a_set_leaves_its_mark_on_the_fingerprint(tmp_path):
    inner = tmp_path / "fashion" / "3.0.1"
    inner.mkdir(parents=True)
    marks = [cache.fingerprint_of_files(tmp_path)]

    def changed():
        marks.append(cache.fingerprint_of_files(tmp_path))
        return marks[-1] not in marks[:-1]

    file = inner / "train"
    file.touch()
    assert changed()
    assert not changed()
    os.utime(file, ns=(0, 1))
    assert changed()
    file.write_bytes(b"more")
    os.utime(file, ns=(0, 1))
    assert changed()
    file.rename(inner / "other")
    assert changed()
    (tmp_path / "elsewhere").symlink_to(inner)
    (inner / "dangling").symlink_to("nowhere")
    assert changed()


def test_garments_are_drawn_once_when_all_are_asked_for_and_until_their_code_changes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(garments, "TRAIN_EXAMPLES", 600)
    monkeypatch.setattr(garments, "TEST_EXAMPLES", 100)
    code = tmp_path / "garments.py"
    code.write_bytes(b"as it is now")
    monkeypatch.setattr(garments, "__file__", str(code))
    said = []

    def load(**settings):
        said.clear()
        settings = config.DataSettings(dataset="garments", cache_dir=tmp_path / "cache", **settings)
        return data.load(settings, say=said.append)

    few = load(test_examples=50)
    assert not (tmp_path / "cache").exists(), "a part is drawn in no time"
    drawn = load()
    assert said == ["drawing 700 built-in garments"]
    found = load()
    assert said == []
    assert content(found) == content(drawn)
    assert np.array_equal(found.test.images[:50], few.test.images)
    code.write_bytes(b"as it is then")
    load()
    assert said == ["drawing 700 built-in garments"]
