"""The cache of decoded data sets returns the same data or none, and never raises."""

import contextlib
import dataclasses
import os
import resource
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from plateau_train import config, data
from plateau_train.data import cache, garments
from plateau_train.data.splits import Dataset, Split
from plateau_train.training import program


def make_dataset(seed=0):
    bits = np.random.default_rng(seed)

    def split(num_examples):
        images = bits.integers(0, 256, (num_examples, 3, 2, 1), np.uint8)
        return Split(images, np.arange(num_examples, dtype=np.int32) % 2)

    return Dataset("small", "a test", ("a", "b ü"), split(5), split(2))


def content(dataset):
    return dataset.name, dataset.source, dataset.class_names, dataset.sha256


FINGERPRINT = "the fingerprint"


@pytest.fixture
def cached(tmp_path):
    """Write a set to the cache, and return its file."""
    path = cache.path_of(tmp_path / "new" / "cache", "small", tmp_path)
    cache.write(path, FINGERPRINT, make_dataset())
    return path


def test_a_cached_set_is_read_back_from_a_plain_npz(cached):
    found = cache.read(cached, FINGERPRINT)
    assert found is not None
    assert content(found) == content(make_dataset())
    with np.load(cached, allow_pickle=False) as stored:
        assert np.array_equal(stored["train/images"], make_dataset().train.images)
    assert os.listdir(cached.parent) == [cached.name]


def test_each_name_and_each_folder_has_its_own_file(tmp_path):
    origin = tmp_path / "small"
    paths = {
        cache.path_of(tmp_path, "small", origin),
        cache.path_of(tmp_path, "small:1.0.0", origin),
        cache.path_of(tmp_path, "small", tmp_path / "elsewhere" / "small"),
    }
    assert len(paths) == 3
    assert {path.parent for path in paths} == {tmp_path}


def test_a_set_made_from_other_files_is_not_read(cached):
    assert cache.read(cached, "another") is None
    cache.write(cached, "another", make_dataset(1))
    assert cache.read(cached, FINGERPRINT) is None
    assert os.listdir(cached.parent) == [cached.name], "the old file is replaced"


def test_a_file_of_another_format_is_not_read(cached, monkeypatch):
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert cache.read(cached, FINGERPRINT) is None


def test_no_flipped_bit_and_no_truncation_changes_the_data(cached):
    """Some bits of a zip file have no meaning; the data are then unchanged."""
    whole, expected = cached.read_bytes(), content(make_dataset())
    misses = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        cached.write_bytes(damaged)
        found = cache.read(cached, FINGERPRINT)
        assert found is None or content(found) == expected, position
        misses += found is None
    assert misses > len(whole) / 2
    for size in range(0, len(whole), 7):
        cached.write_bytes(whole[:size])
        assert cache.read(cached, FINGERPRINT) is None, size


def with_other_arrays(path):
    """Replace an array: the zip file stays valid, and the digest is that of the old array."""
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
        lambda path: path.write_text("not a cached set"),
    ],
    ids=["arrays", "objects", "folder", "pipe", "nothing", "npy", "npz", "text"],
)
def test_a_foreign_or_damaged_file_is_not_read_and_is_replaced(cached, damage):
    damage(cached)
    assert cache.read(cached, FINGERPRINT) is None
    cache.write(cached, FINGERPRINT, make_dataset())
    assert cached.is_dir() or content(cache.read(cached, FINGERPRINT)) == content(make_dataset())
    assert os.listdir(cached.parent) == [cached.name]


@contextlib.contextmanager
def a_file_above(folder):
    folder.parent.mkdir(parents=True)
    folder.touch()
    yield
    folder.unlink()


@contextlib.contextmanager
def no_write_permission(folder):
    """Use a folder of the kernel, because root may write to all others."""
    folder.parent.mkdir(parents=True)
    folder.symlink_to("/proc/self")
    yield
    folder.unlink()


@pytest.mark.parametrize("refusing", [a_file_above, no_write_permission])
def test_an_unwritable_folder_leaves_a_set_uncached(tmp_path, refusing):
    path = tmp_path / "new" / "cache" / "small.npz"
    with refusing(path.parent):
        cache.write(path, FINGERPRINT, make_dataset())
        assert cache.read(path, FINGERPRINT) is None
        assert not path.parent.is_dir() or not list(path.parent.glob(".plateau-train-*"))
    cache.write(path, FINGERPRINT, make_dataset())
    assert cache.read(path, FINGERPRINT) is not None


def test_a_full_disk_keeps_the_old_file(cached):
    """Limit the size of a file, which has the same effect as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for num_bytes in range(0, cached.stat().st_size, 50):
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
        try:
            cache.write(cached, FINGERPRINT, make_dataset(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(cached.parent) == [cached.name]
    assert content(cache.read(cached, FINGERPRINT)) == content(make_dataset())


def test_concurrent_writes_and_reads_always_find_a_complete_set(tmp_path):
    path, expected = tmp_path / "small.npz", {content(make_dataset(seed)) for seed in (0, 1)}
    seen = []

    def write_and_read(seed):
        for _ in range(30):
            cache.write(path, FINGERPRINT, make_dataset(seed))
            seen.append(cache.read(path, FINGERPRINT))

    threads = [threading.Thread(target=write_and_read, args=(seed,)) for seed in (0, 1) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 120
    assert None not in seen, "the file was missing while it was replaced"
    assert {content(found) for found in seen} <= expected
    assert os.listdir(tmp_path) == [path.name]


def test_old_temporary_files_are_removed_and_no_others(cached):
    left, young, foreign = (
        cached.with_name(name) for name in (".plateau-train-1.tmp", ".plateau-train-2.tmp", "3.tmp")
    )
    for path in (left, young, foreign):
        path.touch()
    for path in (left, foreign):
        old = time.time() - 2 * cache.LEFTOVER_SECONDS
        os.utime(path, (old, old))
    cache.write(cached, FINGERPRINT, make_dataset())
    assert set(cached.parent.iterdir()) == {cached, young, foreign}


def test_every_change_of_a_file_changes_the_fingerprint(tmp_path):
    inner = tmp_path / "fashion" / "3.0.1"
    inner.mkdir(parents=True)
    fingerprints = [cache.fingerprint_of_files(tmp_path)]

    def changed():
        fingerprints.append(cache.fingerprint_of_files(tmp_path))
        return fingerprints[-1] not in fingerprints[:-1]

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


def test_garments_are_drawn_again_only_when_their_code_changes(tmp_path, monkeypatch, messages):
    monkeypatch.setattr(garments, "TRAIN_EXAMPLES", 600)
    monkeypatch.setattr(garments, "TEST_EXAMPLES", 100)
    code = tmp_path / "garments.py"
    code.write_bytes(b"the code now")
    monkeypatch.setattr(garments, "__file__", str(code))

    def load(**settings):
        messages.clear()
        settings = config.DataSettings(dataset="garments", cache_dir=tmp_path / "cache", **settings)
        return data.load(settings)

    few = load(test_examples=50)
    assert not (tmp_path / "cache").exists(), "a part is drawn without the cache"
    drawn = load()
    assert messages == ["drawing 700 built-in garments"]
    found = load()
    assert messages == []
    assert content(found) == content(drawn)
    assert np.array_equal(found.test.images[:50], few.test.images)
    code.write_bytes(b"the code later")
    load()
    assert messages == ["drawing 700 built-in garments"]


def test_folders_of_the_cache_are_private_whatever_the_umask_is(tmp_path):
    before = os.umask(0)
    try:
        cache.write(tmp_path / "a" / "b" / "small.npz", "the fingerprint", make_dataset())
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o700] * 2
    assert cache.read(tmp_path / "a" / "b" / "small.npz", "the fingerprint") is not None


@pytest.mark.parametrize(
    ("mode", "owner", "problem"),
    [(0o770, 0, "is writable by other users"), (0o700, 1, "belongs to another user")],
)
def test_a_cache_that_others_may_write_to_is_not_used(
    tmp_path, caplog, monkeypatch, mode, owner, problem
):
    folder = tmp_path / "cache"
    path = folder / "small.npz"
    cache.write(path, "the fingerprint", make_dataset())
    folder.chmod(mode)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + owner)
    assert cache.read(path, "the fingerprint") is None
    assert f"{folder} {problem}, so nothing is read from it" in caplog.text
    before = path.read_bytes()
    cache.write(path, "another", make_dataset())
    assert path.read_bytes() == before
    monkeypatch.setitem(jax.config.values, "jax_compilation_cache_dir", None)
    monkeypatch.setattr(jax.config, "update", refuse_update)
    program.enable_compilation_cache(folder)
    assert not (folder / "compiled").exists()


def refuse_update(name, value):
    raise AssertionError(f"{name} was set to {value}")


@pytest.mark.parametrize(
    "change",
    [
        lambda images, labels: (images, labels + 2),
        lambda images, labels: (images, labels - 2),
        lambda images, labels: (images[:, :, :, 0], labels),
        lambda images, labels: (images[:-1], labels),
        lambda images, labels: (images.astype(np.int32), labels),
        lambda images, labels: (images[:, :1], labels),
        lambda images, labels: (images[:0], labels[:0]),
    ],
    ids=["large", "negative", "flat", "short", "int32", "other shape", "empty"],
)
def test_a_cached_set_that_is_no_image_set_is_not_read(tmp_path, change):
    dataset = make_dataset()
    changed = dataclasses.replace(dataset, test=Split(*change(*dataset.test)))
    cache.write(tmp_path / "small.npz", "the fingerprint", changed)
    assert cache.read(tmp_path / "small.npz", "the fingerprint") is None
