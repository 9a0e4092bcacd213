"""Checkpoints: what is in them, and that only what was written is ever read back."""

import io
import os
import random
import traceback
import zipfile

import numpy as np
import pytest
from folders import ARRAYS, ENVIRONMENT
from matplotlib.figure import Figure

from plateau_train import config
from plateau_train.errors import ForeignRunError, RunError, StorageError
from plateau_train.plots.style import save_figure
from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import (
    FORMAT,
    Checkpoint,
    FileState,
    Manifest,
    read_checkpoint,
    read_manifest,
    save_checkpoint,
)


def manifest(epoch, *, best=0):
    """Return the manifest of an epoch; ``best`` is the best one."""
    return Manifest(
        epoch=epoch,
        best_epoch=best,
        best_score=0.1 + 0.2,
        settings=config.Settings(),
        origins={"epochs": "ä [b]\u2028"},
        environment=ENVIRONMENT,
        files={"metrics.jsonl": FileState(num_bytes=3, sha256="0" * 64)},
    )


def saved(folder, epoch=7):
    storage.make_folder(folder)
    save_checkpoint(folder, Checkpoint(manifest(epoch), ARRAYS))
    return checkpoint.epoch_path(folder, epoch)


def stamped(content):
    """Return bytes with the checksum that their writer would have computed."""
    content = bytearray(content)
    digest = checkpoint.hashlib.sha256(content[: -checkpoint.DIGEST_BYTES]).digest()
    content[-checkpoint.DIGEST_BYTES :] = digest
    return bytes(content)


def archived(**arrays):
    """Return the bytes of a checkpoint with any members."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = bytes(checkpoint.DIGEST_BYTES)
    return stamped(buffer.getvalue())


def test_a_checkpoint_reads_back_every_array_and_its_manifest_exactly(tmp_path):
    path = saved(tmp_path)
    found = read_checkpoint(path)
    assert found.manifest == read_manifest(path) == manifest(7)
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    with np.load(path, allow_pickle=False) as loaded:  # without this package
        np.testing.assert_array_equal(
            loaded["state/params/Dense_0/kernel"], ARRAYS["params/Dense_0/kernel"]
        )


def test_the_two_newest_checkpoints_and_the_best_are_kept(tmp_path):
    for epoch in range(5):
        save_checkpoint(tmp_path, Checkpoint(manifest(epoch, best=1), ARRAYS))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.npz", "epoch-000003.npz", "epoch-000004.npz"]
    assert read_checkpoint(tmp_path / "best.npz").manifest.epoch == 1
    assert (tmp_path / "best.npz").stat().st_nlink == 1


def test_the_best_checkpoint_is_a_link_or_a_copy_where_links_are_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "linked", epoch=0)
    assert (path.parent / "best.npz").samefile(path)

    def refused(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    path = saved(tmp_path / "copied", epoch=0)
    assert not (path.parent / "best.npz").samefile(path)
    assert (path.parent / "best.npz").read_bytes() == path.read_bytes()


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    path = saved(tmp_path)
    content = path.read_bytes()
    read_checkpoint(path)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(RunError, match="cannot be used"):
            read_checkpoint(path)
    for length in (0, 1, 31, 32, 33, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(RunError, match="cannot be used"):
            read_checkpoint(path)


def test_malformed_bytes_with_a_right_checksum_are_refused_or_read(tmp_path):
    """zip and NumPy raise many kinds of errors, and none of them may reach the user."""
    content = saved(tmp_path).read_bytes()
    path = tmp_path / "best.npz"
    dice = random.Random(3)
    refused = 0
    for _ in range(300):
        fuzzed = bytearray(content)
        for _ in range(dice.choice((1, 1, 2, 20))):
            fuzzed[dice.randrange(len(fuzzed))] = dice.randrange(256)
        path.write_bytes(stamped(fuzzed))
        for read in (read_manifest, read_checkpoint):
            try:
                read(path)
            except RunError:
                refused += read is read_checkpoint
    assert refused > 100


def test_a_wrong_crc_behind_a_right_checksum_is_refused(tmp_path):
    path = saved(tmp_path)
    content = path.read_bytes()
    start = content.index(ARRAYS["params/Dense_0/kernel"].tobytes())
    path.write_bytes(stamped(content[:start] + b"\0" + content[start + 1 :]))
    with pytest.raises(RunError, match="Bad CRC-32"):
        read_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "epoch-000001.npz"
    path.write_bytes(archived(manifest=np.array(Bomb(), object)))
    with pytest.raises(RunError, match="cannot be used"):
        read_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_an_array_that_declares_more_than_its_file_has_is_not_read(tmp_path):
    path = tmp_path / "epoch-000001.npz"
    content = archived(manifest=np.zeros(99_999, np.uint8))  # more than zip reads ahead
    path.write_bytes(stamped(content.replace(b"(99999,), }       ", b"(99999999999,), } ")))
    for read in (read_manifest, read_checkpoint):
        with pytest.raises(RunError, match="does not have the size of its type"):
            read(path)


@pytest.mark.parametrize("number", [1, FORMAT + 1])
def test_a_checkpoint_of_another_format_is_of_another_version(tmp_path, number):
    path = tmp_path / "epoch-000001.npz"
    path.write_bytes(archived(manifest=np.array(b'{"format": %d}' % number)))
    said = f"is of another version: it has format {number}, and this version reads 2 to {FORMAT}"
    for read in (read_manifest, read_checkpoint):
        with pytest.raises(ForeignRunError, match=said):
            read(path)
    with pytest.raises(ForeignRunError, match=said):
        checkpoint.read_newest(tmp_path)


def test_a_manifest_with_unknown_values_is_of_another_version(tmp_path):
    path = tmp_path / "epoch-000007.npz"
    text = manifest(7).model_dump_json().replace('"mode":"train-loss"', '"mode":"new"')
    path.write_bytes(archived(manifest=np.array(text.encode())))
    with pytest.raises(ForeignRunError, match=r"of another version: .* at settings.plateau.mode"):
        read_checkpoint(path)


def test_a_checkpoint_under_the_name_of_another_epoch_is_refused(tmp_path):
    path = saved(tmp_path).rename(tmp_path / "epoch-000008.npz")
    with pytest.raises(RunError, match="it is of epoch 7, not of the one in its name"):
        read_checkpoint(path)


def test_only_intact_checkpoints_of_later_epochs_are_removed(tmp_path):
    for epoch in range(4):
        saved(tmp_path, epoch)
    for epoch in (4, 5):
        path = saved(tmp_path, epoch)
    path.write_bytes(b"damaged")
    checkpoint.remove_later(tmp_path, 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.npz", "epoch-000005.npz"]
    checkpoint.remove_later(tmp_path, -1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000005.npz"]


def test_the_newest_intact_checkpoint_is_read_and_the_damaged_are_named(tmp_path):
    for epoch in range(4):
        save_checkpoint(tmp_path, Checkpoint(manifest(epoch, best=1), ARRAYS))
    found, reasons = checkpoint.read_newest(tmp_path)
    assert (found and found.manifest.epoch, reasons) == (3, [])
    for name, used in (("epoch-000003", 2), ("epoch-000002", 1), ("best", None)):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(path.read_bytes()[:-1])
        found, reasons = checkpoint.read_newest(tmp_path)
        assert (found and found.manifest.epoch) == used
        assert f"{path} cannot be used" in reasons[-1]
    assert len(reasons) == 3


def test_a_damaged_checkpoint_stays_until_it_is_written_again(tmp_path):
    for epoch in (0, 1, 2, 3):
        path = saved(tmp_path, epoch)
    path.write_bytes(b"damaged")
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    assert sorted(tmp_path.glob("epoch-*"))[0].name == "epoch-000001.npz"
    assert path.read_bytes() == b"damaged"
    saved(tmp_path, 3)
    assert read_checkpoint(path).manifest.epoch == 3


def test_a_link_in_the_place_of_the_checkpoints_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="symbolic link, which is not followed"):
        saved(tmp_path / "checkpoints")
    assert not list((tmp_path / "elsewhere").iterdir())


def views_of_buffers(error):
    """Yield the views of other objects than bytes that the traceback of an error keeps alive."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, memoryview):
                try:
                    yield from [] if isinstance(value.obj, bytes) else [value]
                except ValueError:  # the view is released
                    continue
    if error.__context__:
        yield from views_of_buffers(error.__context__)


def test_an_error_keeps_no_view_that_crashes_the_garbage_collection(tmp_path):
    """Python 3.12.1 crashes when it collects a view of a BytesIO in a cycle."""
    for write in (
        lambda: save_checkpoint(tmp_path / "none", Checkpoint(manifest(7), ARRAYS)),
        lambda: save_figure(tmp_path / "none" / "a.png", "png", Figure(figsize=(1, 1))),
    ):
        with pytest.raises((OSError, StorageError)) as failed:
            write()
        assert list(views_of_buffers(failed.value)) == []
