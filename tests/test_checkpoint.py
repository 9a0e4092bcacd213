"""Checkpoints: what they hold, and that nothing but what was written is ever read back."""

import io
import os
import random
import zipfile

import numpy as np
import pytest
from test_run import DROP, RECORD

from plateau_train import config
from plateau_train.errors import RunError, StorageError
from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import Checkpoint, Manifest, read_checkpoint, save_checkpoint
from plateau_train.run.environment import DatasetFacts, describe_environment
from plateau_train.run.records import Notice, Timing

ARRAYS = {
    "params/Dense_0/kernel": np.random.default_rng(0).random((7, 5), np.float32),
    "plateau/count": np.array(3, np.int32),
    "plateau/best_value": np.array(np.inf, np.float32),
}


def manifest(epoch, *, best=None):
    """Return what a run is after an epoch, with its best one where it is said."""
    facts = DatasetFacts(
        name="garments", fallback="", sha256="0" * 64, image_shape=(28, 28, 1), class_names=("a",)
    )
    records = [
        RECORD.model_copy(update={"epoch": number, "test_accuracy": float(number == best)})
        for number in range(epoch + 1)
    ]
    return Manifest(
        settings=config.Settings(),
        origins={},
        environment=describe_environment(["cpu:0"], facts),
        records=tuple(records),
        timings=(Timing(epoch=0, train_seconds=1, evaluate_seconds=2, samples_per_second=None),),
        events=(Notice(event="warning", message="ä [b]\u2028"), DROP),
    )


def saved(folder, epoch=7):
    storage.make_folder(folder)
    save_checkpoint(folder, Checkpoint(manifest(epoch), ARRAYS))
    return checkpoint.epoch_path(folder, epoch)


def stamped(content):
    """Give bytes the checksum that their writer would have given them."""
    content = bytearray(content)
    digest = checkpoint.hashlib.sha256(content[: -checkpoint.DIGEST_BYTES]).digest()
    content[-checkpoint.DIGEST_BYTES :] = digest
    return bytes(content)


def archived(**arrays):
    """Return the bytes of a checkpoint with these members, whatever they are."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = bytes(checkpoint.DIGEST_BYTES)
    return stamped(buffer.getvalue())


def test_a_checkpoint_holds_every_array_and_all_of_the_run_bit_for_bit(tmp_path):
    path = saved(tmp_path)
    found = read_checkpoint(path)
    assert found.manifest == manifest(7)
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    with np.load(path, allow_pickle=False) as loaded:  # what anybody can read without us
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


def test_the_best_checkpoint_is_a_second_name_and_where_links_are_refused_a_copy(
    tmp_path, monkeypatch
):
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


def test_bytes_that_somebody_stamped_are_refused_or_read_but_never_end_in_a_traceback(tmp_path):
    """Behind the checksum zip and NumPy read what anybody may have written."""
    content = saved(tmp_path).read_bytes()
    path = tmp_path / "best.npz"
    dice = random.Random(3)
    refused = 0
    for _ in range(300):
        fuzzed = bytearray(content)
        for _ in range(dice.choice((1, 1, 2, 20))):
            fuzzed[dice.randrange(len(fuzzed))] = dice.randrange(256)
        path.write_bytes(stamped(fuzzed))
        try:
            read_checkpoint(path)
        except RunError:
            refused += 1
    assert refused > 100


def test_a_content_whose_crc_is_wrong_is_refused_behind_a_right_checksum(tmp_path):
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


def test_an_array_that_claims_to_be_larger_than_its_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "epoch-000001.npz"
    content = archived(manifest=np.zeros(99_999, np.uint8))  # more than zip reads ahead
    path.write_bytes(stamped(content.replace(b"(99999,), }       ", b"(99999999999,), } ")))
    with pytest.raises(RunError, match="has not the size of its type"):
        read_checkpoint(path)


def test_a_checkpoint_of_a_later_format_says_so(tmp_path):
    path = tmp_path / "epoch-000001.npz"
    path.write_bytes(archived(manifest=np.array(b'{"format": 2}')))
    with pytest.raises(RunError, match="it has format 2, and this version reads 1"):
        read_checkpoint(path)


def test_the_newest_sound_checkpoint_is_found_and_the_others_are_named(tmp_path):
    for epoch in range(4):
        save_checkpoint(tmp_path, Checkpoint(manifest(epoch, best=1), ARRAYS))
    found, reasons = checkpoint.read_newest(tmp_path)
    assert (found.manifest.epoch, reasons) == (3, [])
    for name, used in (("epoch-000003", 2), ("epoch-000002", 1), ("best", None)):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(path.read_bytes()[:-1])
        found, reasons = checkpoint.read_newest(tmp_path)
        assert (found and found.manifest.epoch) == used
        assert f"{path} cannot be used" in reasons[-1]
    assert len(reasons) == 3


def test_what_a_run_finds_damaged_stays_until_it_is_made_again(tmp_path):
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
