"""The files of a run: how they are written, and that what is read is what was written."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers import DROP, RECORD, make_history, record_of, write_lines

from plateau_train.errors import ForeignRunError, RunError, StorageError
from plateau_train.run import environment, storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import make_histories
from plateau_train.run.journal import read_lines
from plateau_train.run.records import Ending, MeanStd, RunWarning
from plateau_train.run.results import Results

ROOT = Path(__file__).parents[1]


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


def test_bytes_that_could_not_be_appended_leave_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.append_bytes(path, b"old\n")

    def refused(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.append_bytes(path, b"new\n")
    assert path.read_bytes() == b"old\n"


def test_a_system_that_writes_in_small_parts_writes_everything(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, rest: write(descriptor, rest[:3]))
    storage.write_bytes(tmp_path / "file", bytes(range(100)))
    storage.append_bytes(tmp_path / "file", bytes(range(100, 200)))
    assert (tmp_path / "file").read_bytes() == bytes(range(200))


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
        storage.append_bytes(link, b"new")
    storage.write_text(link, "new")
    assert (tmp_path / "precious").read_text() == "old"
    assert link.read_text() == "new"


def test_runs_of_the_same_second_get_different_folders(tmp_path):
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


def test_a_folder_that_must_not_be_listed_is_refused_as_one(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(RunError, match="cannot be read: Permission denied"):
        RunDirectory.find(tmp_path)


def test_a_file_is_written_below_a_folder_that_must_not_be_listed(tmp_path, monkeypatch):
    open_path = os.open

    def refuse(path, flags, *mode):
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_path(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    assert storage.make_folder(tmp_path / "runs")
    storage.write_bytes(tmp_path / "runs.txt", b"text")
    assert (tmp_path / "runs.txt").read_bytes() == b"text"


def test_a_folder_without_the_files_of_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no config.toml and no metrics.jsonl"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="there is no folder"):
        RunDirectory.open(tmp_path / "nowhere")


def test_an_epoch_reads_back_exactly_as_it_was_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [RECORD, record_of(2)])
    one, two = read_lines(path, None)
    assert one == RECORD
    assert two.epoch == 2
    assert one.train_loss == 0.1 + 0.2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (RECORD.model_dump_json()[:40], "Invalid JSON"),
        ('{"format": 1, "epoch": 1}', "Field required at step"),
        ("[" * 100_000, "Invalid JSON"),
        ("\xff", "Invalid JSON"),
        (RECORD.model_dump_json().replace('"step":468', '"step":NaN'), "valid integer at step"),
        (
            RECORD.model_dump_json().replace('"step":468', '"step":"x"'),
            "Input should be .* at step",
        ),
        (RECORD.model_dump_json().replace('"wait":1', '"wait":"1"'), "valid integer at wait"),
        (record_of(1, test_accuracy=1.5).model_dump_json(), "equal to 1 at test_accuracy"),
        (record_of(1, train_accuracy=-0.5).model_dump_json(), "equal to 0 at train_accuracy"),
        (record_of(1, scale=2.0).model_dump_json(), "equal to 1 at scale"),
        (record_of(1, epoch=-1).model_dump_json(), "equal to 0 at epoch"),
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path, line, problem):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [RECORD])
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(RunError, match=f"metrics.jsonl line 2 is damaged: .*{problem}"):
        read_lines(path, None)


def test_a_torn_last_line_is_not_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [RECORD])
    path.write_text(path.read_text() + RECORD.model_dump_json()[:-1])
    assert read_lines(path, None) == [RECORD]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "timings.jsonl"])
@pytest.mark.parametrize("line", ['{"format":2}', '{"format": 2, "event": "new", "epoch": [1]}'])
def test_a_line_of_another_format_is_of_another_version(tmp_path, name, line):
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(ForeignRunError, match="line 1 is of another version: it has format 2"):
        read_lines(tmp_path / name, None)


def test_a_whole_line_of_another_format_is_of_another_version(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [RECORD.model_copy(update={"format": 2})])
    with pytest.raises(ForeignRunError, match="line 1 is of another version: it has format 2"):
        read_lines(path, None)


def test_a_drop_is_written_with_its_reason_and_reads_back(tmp_path):
    notice = RunWarning(message="careful")
    path = tmp_path / "events.jsonl"
    write_lines(path, [notice, DROP])
    assert read_lines(path, None) == [notice, DROP]
    assert json.loads(path.read_text().splitlines()[1])["reason"] == (
        "5 observations in a row (train loss, mean of 200 steps) were not below 0.3121 "
        "(best 0.3122); the last was 0.314"
    )
    assert DROP.describe().startswith(
        "drop in epoch 11, after 4,800 steps: scale 1 -> 0.5, lr 0.01 -> 0.005, because 5 "
    )
    assert read_lines(tmp_path / "none" / "events.jsonl", None) == []


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path):
    notice = RunWarning(message="a\u2028b\u0085c")
    write_lines(tmp_path / "events.jsonl", [notice])
    assert read_lines(tmp_path / "events.jsonl", None) == [notice]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"epoch": 3}, "line 2 is of epoch 3, not 1"),
        ({"epoch": 0}, "line 2 is of epoch 0, not 1"),
        ({"step": 0}, "line 2 has step 0, which cannot be the last of epoch 1"),
        ({"step": 300}, "line 2 has observations at steps that epoch 1 does not have"),
        ({"val_loss": 1.0, "val_accuracy": 0.5}, "line 2 lacks validation metrics"),
        ({"replica": 1}, "line 2 is of epoch 1, not 0"),
    ],
)
def test_a_history_with_a_gap_is_refused_with_the_line(tmp_path, changes, problem):
    records = [record_of(0), record_of(1, **changes)]
    with pytest.raises(RunError, match=problem):
        make_histories(records, (), tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([record_of(0, observations=RECORD.observations)], "line 1 has observations at steps that"),
        ([record_of(0, step=7)], "line 1 has step 7, which cannot be the last of epoch 0"),
        ([record_of(0), record_of(1), record_of(2, step=468)], "line 3 has step 468"),
        (
            [record_of(0), record_of(1), record_of(2, observations=RECORD.observations)],
            "line 3 has observations at steps that epoch 2 does not have",
        ),
    ],
)
def test_steps_that_a_run_cannot_have_are_damage(tmp_path, records, problem):
    with pytest.raises(RunError, match=problem):
        make_histories(records, (), tmp_path / "metrics.jsonl")


def test_the_commit_is_that_of_the_repository_that_tracks_the_package(tmp_path, monkeypatch):
    package = tmp_path / "environment.py"
    package.touch()
    monkeypatch.setattr(environment, "__file__", str(package))

    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *words]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        return finished.stdout.strip()

    for name in [each for each in os.environ if each.startswith("GIT_")]:
        monkeypatch.delenv(name)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=one")
    assert environment._git_commit() is None, "the package is only inside the repository"
    git("add", "environment.py")
    git("commit", "--quiet", "--message=two")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert environment._git_commit() == commit
    package.write_text("# changed")
    assert environment._git_commit() == f"{commit}+"


def test_a_replica_has_its_own_records_drops_and_ending(tmp_path):
    records = [
        record_of(epoch, replica=replica, seed=(4, 7)[replica])
        for epoch, replica in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 1))
    ]
    ending = Ending(replica=0, epoch=1, reason="diverged", message="the loss is nan")
    old = Ending(replica=1, epoch=1, reason="epochs", message="continued since then")
    drop = DROP.model_copy(update={"replica": 1})
    first, second = make_histories(records, (drop, ending, old), tmp_path)
    assert (first.seed, first.last_epoch, first.drops, first.ending) == (4, 1, [], ending)
    assert (second.seed, second.last_epoch, second.drops, second.ending) == (7, 2, [drop], None)
    assert (first.has_diverged, second.has_diverged) == (True, False)


def test_results_are_means_over_the_replicas_that_did_not_diverge():
    first, second, lost = (
        make_history(4, val=True, drop_every=replica + 1, replica=replica) for replica in range(3)
    )
    ending = Ending(replica=2, epoch=2, reason="diverged", message="the loss is nan")
    lost = lost.until(2)._replace(ending=ending)
    # The best epoch is that of the highest mean of the replicas that are finite in it.
    best = [record.model_copy(update={"val_accuracy": 0.99}) for record in lost.records]
    results = Results.of([first, second, lost._replace(records=best)])
    assert (results.seeds, results.epoch, results.split) == ([10, 11], 4, "val")
    assert results.drop_epochs == [[1, 2, 3, 4], [2, 4]]
    assert results.num_drops == MeanStd.of([4, 2])
    assert results.final_scales == [1 / 16, 1 / 4]
    last, best = ([history.records[epoch] for history in (first, second)] for epoch in (4, 2))
    assert results.final_score == MeanStd.of([record.score for record in last])
    assert results.final["test"].loss == MeanStd.of([record.test_loss for record in last])
    assert results.best_epoch == 2
    assert results.best_score == MeanStd.of([*(record.score for record in best), 0.99])


def test_a_history_until_an_epoch_has_no_later_drop_and_no_later_ending():
    ending = Ending(epoch=3, reason="diverged", message="the loss is nan at epoch 4")
    history = make_history(3, drop_every=1)._replace(ending=ending)
    earlier = history.until(2)
    assert (earlier.last_epoch, earlier.ending, len(earlier.drops)) == (2, None, 2)
    assert history.until(3) == history._replace(ending=None)
    assert history.until(4) == history
    done = history._replace(ending=ending.model_copy(update={"reason": "epochs"}))
    assert done.until(3) == done
