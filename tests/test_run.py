import errno
import json
import os

import pytest

from plateau_train.errors import RunError, StorageError
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.records import (
    EPOCHS,
    EVENTS,
    Drop,
    EpochRecord,
    Notice,
    read_drops,
    read_history,
    read_records,
)

RECORD = EpochRecord(
    epoch=1, step=468, train_loss=0.1 + 0.2, train_accuracy=0.5, test_loss=1.5, test_accuracy=0.25,
    scale=0.5, learning_rate=0.005, wait=1, cooldown=0, best_value=1.0, to_beat=0.9999,
    observations=(1.0, 1.5),
)  # fmt: skip
DROP = Drop(
    epoch=11, step=4800, position=10.26, scale_before=1.0, scale_after=0.5,
    learning_rate_before=0.01, learning_rate_after=0.005,
    observed="train loss, mean of 200 steps", value=0.314, best=0.3122, to_beat=0.3121, waited=5,
)  # fmt: skip


def test_a_file_that_could_not_be_finished_leaves_the_old_one_and_nothing_else(
    tmp_path, monkeypatch
):
    path = tmp_path / "file"
    storage.write_text(path, "old")

    def full(descriptor, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    said = r"No space left on device \(3 bytes needed, [\d,]+ free\)"
    with pytest.raises(StorageError, match=said):
        storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_refused_write_names_the_file_and_the_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        storage.write_text(tmp_path / "file" / "inside", "text")
    with pytest.raises(StorageError, match="File exists"):
        RunDirectory.create(tmp_path / "file", "name")


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="it is a symbolic link, which is not followed"):
        storage.append_lines(link, [RECORD])
    storage.write_text(link, "new")
    assert (tmp_path / "precious").read_text() == "old"
    assert link.read_text() == "new"


def test_two_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    paths = [RunDirectory.create(tmp_path, "same").path for _ in range(20)]
    assert len(set(paths)) == 20
    assert all(path.is_dir() for path in paths)
    assert any(path.name.endswith("-2") for path in paths)


def test_latest_points_at_the_newest_run_by_a_relative_link(tmp_path):
    for name in ("one", "two"):
        run = RunDirectory.create(tmp_path, name)
        run.config.touch()
        run.make_latest()
        assert os.readlink(tmp_path / "latest") == run.path.name
    assert (tmp_path / "latest").resolve() == run.path.resolve()


def test_a_folder_that_is_no_run_is_refused_and_says_what_it_lacks(tmp_path):
    with pytest.raises(RunError, match=r"has no config.toml and no metrics.jsonl"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="is no folder"):
        RunDirectory.open(tmp_path / "nowhere")


def test_an_epoch_reads_back_exactly_as_it_was_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    storage.append_lines(path, [RECORD])
    storage.append_lines(path, [RECORD.model_copy(update={"epoch": 2})])
    one, two = read_records(path, EPOCHS)
    assert one == RECORD
    assert two.epoch == 2
    assert one.train_loss == 0.1 + 0.2


def test_a_damaged_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    storage.append_lines(path, [RECORD])
    with path.open("a") as file:
        file.write(RECORD.model_dump_json()[:40])
    with pytest.raises(RunError, match=r"metrics.jsonl line 2 is damaged"):
        read_records(path, EPOCHS)
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(RunError, match="line 1 is damaged: Field required at step"):
        read_records(path, EPOCHS)


def test_a_drop_carries_its_reason_into_the_file_and_out_again(tmp_path):
    path = tmp_path / "events.jsonl"
    storage.append_lines(path, [Notice(event="warning", message="careful")])
    storage.append_lines(path, [DROP])
    assert read_drops(path) == [DROP]
    assert json.loads(path.read_text().splitlines()[1])["reason"] == (
        "5 observations in a row (train loss, mean of 200 steps) were not below 0.3121 "
        "(best 0.3122); the last was 0.314"
    )
    assert DROP.describe().startswith(
        "drop in epoch 11, after 4,800 steps: scale 1 -> 0.5, lr 0.01 -> 0.005, because 5 "
    )
    assert read_drops(tmp_path / "none.jsonl") == []


def test_a_history_that_is_not_whole_is_refused_with_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = RECORD.model_copy(update={"epoch": 0})
    for damaged, said in (
        (RECORD.model_copy(update={"epoch": 3}), "line 2 is of epoch 3, not 1"),
        (RECORD.model_copy(update={"val_loss": 1.0, "val_accuracy": 0.5}), "line 2 lacks"),
    ):
        storage.write_text(path, f"{first.model_dump_json()}\n{damaged.model_dump_json()}\n")
        with pytest.raises(RunError, match=said):
            read_history(path)
    storage.write_text(path, f"{first.model_dump_json()}\n{RECORD.model_dump_json()[:-1]}")
    assert read_history(path) == [first], "a torn line is no damage"
    storage.write_text(path, first.model_dump_json().replace("1.5", "NaN") + "\n")
    with pytest.raises(RunError, match="line 1 is damaged"):
        read_history(path)


def test_separators_that_json_leaves_as_they_are_do_not_break_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    notice = Notice(event="warning", message="a\u2028b\u0085c")
    storage.append_lines(path, [notice])
    assert read_records(path, EVENTS) == [notice]
