"""The journal: what a checkpoint committed is verified, and what it did not is cut."""

import numpy as np
import pytest
from folders import ARRAYS, make_lines, read_newest, start_journal, write_epochs

from plateau_train.api.evaluation import choose_replica
from plateau_train.errors import ForeignRunError, RunError
from plateau_train.run import checkpoint, journal, storage
from plateau_train.run.checkpoint import Checkpoint, read_checkpoint
from plateau_train.run.reader import Run
from plateau_train.run.records import Drop, Ending, Notice

NAMES = tuple(journal.FILES)
NOTICE = Notice(event="interrupted", message="stopped by SIGTERM")


@pytest.fixture
def run(tmp_path):
    """The folder of a run of three epochs."""
    written = start_journal(tmp_path / "run")
    write_epochs(written, 0, 1, 2, 3)
    return written.directory


@pytest.fixture
def short_run(tmp_path):
    """The folder of a run of one epoch."""
    written = start_journal(tmp_path / "run")
    write_epochs(written, 0, 1)
    return written.directory


def read_everything(run):
    """Read all that commands show of a run."""
    opened = Run(run)
    return opened.histories, opened.events, opened.timings


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def test_a_run_reads_back_as_it_was_committed(run):
    (history,), events, timings = read_everything(run)
    assert [record.epoch for record in history.records] == [0, 1, 2, 3]
    assert [drop.epoch for drop in history.drops] == [1, 3]
    assert events == history.drops
    assert [timing.epoch for timing in timings] == [0, 1, 2, 3]
    assert list(journal.verify(run, read_newest(run).manifest)) == []


def test_the_files_are_verified_by_every_checkpoint_that_is_kept(run):
    paths = checkpoint.candidates(run.checkpoints)
    assert [read_checkpoint(path).manifest.epoch for path in paths] == [3, 2, 0]
    for path in paths:
        assert list(journal.verify(run, read_checkpoint(path).manifest)) == []


def flip(content, position):
    flipped = bytearray(content)
    flipped[position] ^= 1 << position % 8
    return flipped


def cut(content, position):
    return content[:position]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("damage", "problem"), [(flip, "is damaged"), (cut, "was cut")])
def test_every_damage_of_a_byte_is_found_and_the_file_is_named(short_run, name, damage, problem):
    path, manifest = short_run.path / name, read_newest(short_run).manifest
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(damage(content, position))
        with pytest.raises(RunError, match=f"{name} {problem}"):
            journal.read_committed(path, manifest)
        if position % 50 == 0:
            assert_refused(short_run, name, problem)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(short_run, name):
    (short_run.path / name).unlink()
    assert_refused(short_run, name, "is missing")


def assert_refused(run, name, problem):
    """Check that one file is reported, and that nothing of the run is read."""
    (reported,) = journal.verify(run, read_newest(run).manifest)
    assert f"{run.path / name} {problem}" in reported
    with pytest.raises(RunError, match=f"{name} {problem}"):
        read_everything(run)


def test_all_damaged_files_are_named_at_once(run):
    for name in NAMES:
        (run.path / name).write_bytes(b"")
    problems = list(journal.verify(run, read_newest(run).manifest))
    assert [problem.split(" was cut")[0] for problem in problems] == [
        str(run.path / name) for name in NAMES
    ]


def test_no_replica_is_called_the_best_if_the_metrics_are_damaged():
    assert choose_replica([], (4, 7), None, 3) == (0, "replica 0, seed 4: ")


def test_a_file_that_cannot_be_read_is_named(run):
    run.metrics.unlink()
    run.metrics.mkdir()
    (problem,) = journal.verify(run, read_newest(run).manifest)
    assert f"{run.metrics} cannot be read: it is not a regular file" in problem


def test_committed_lines_of_another_format_are_of_another_version(tmp_path):
    written = start_journal(tmp_path / "run")
    written.commit(make_lines(0, format=2), ARRAYS)
    run = written.directory
    with pytest.raises(ForeignRunError, match="line 1 is of another version: it has format 2"):
        list(journal.verify(run, read_newest(run).manifest))
    with pytest.raises(ForeignRunError, match="is of another version"):
        read_everything(run)


def test_lines_that_no_checkpoint_committed_are_not_read(run):
    before = read_everything(run)
    lines = make_lines(4)
    append(run.metrics, storage.as_lines(lines.records).decode() + '{"torn')
    append(run.events, storage.as_lines([make_lines(5).events[0], NOTICE]).decode() + '{"torn')
    append(run.timings, storage.as_lines(lines.timings).decode() + '{"torn')
    histories, events, timings = read_everything(run)
    assert (histories, timings) == (before[0], before[2])
    assert events == [*before[1], NOTICE]
    assert list(journal.verify(run, read_newest(run).manifest)) == []


def test_a_resume_cuts_what_was_not_committed_and_keeps_the_notices(run):
    before = {name: (run.path / name).read_bytes() for name in NAMES}
    ending = Ending(epoch=3, reason="diverged", message="the loss is nan")
    append(run.metrics, storage.as_lines(make_lines(4).records).decode())
    append(run.events, storage.as_lines([*make_lines(5).events, NOTICE, ending]).decode())
    append(run.timings, '{"torn')
    resumed = start_journal(run.path, read_newest(run))
    kept = storage.as_lines([NOTICE])
    after = {name: (run.path / name).read_bytes() for name in NAMES}
    assert after == before | {"events.jsonl": before["events.jsonl"] + kept}
    write_epochs(resumed, 4, 5)
    assert list(journal.verify(run, read_newest(run).manifest)) == []
    kinds = [type(event) for event in Run(run).events]
    assert kinds == [Drop, Drop, Notice, Drop]


def test_a_notice_survives_any_number_of_resumes(run):
    for _ in range(3):
        start_journal(run.path, read_newest(run)).note(NOTICE)
    assert Run(run).events[2:] == [NOTICE] * 3
    assert [drop.epoch for drop in Run(run).histories[0].drops] == [1, 3]


def test_a_run_can_be_read_while_it_continues_behind_a_damaged_checkpoint(run, caplog):
    """The damaged checkpoint has a readable manifest, and the history that it commits is cut."""
    path = checkpoint.epoch_path(run.checkpoints, 3)
    large = np.ones(100_000, np.uint8)
    checkpoint.save_checkpoint(run.checkpoints, read_newest(run)._replace(arrays={"large": large}))
    path.write_bytes(path.read_bytes().replace(large.tobytes(), bytes(large.size)))
    assert checkpoint.read_manifest(path).epoch == 3
    second = read_checkpoint(checkpoint.epoch_path(run.checkpoints, 2))
    resumed = start_journal(run.path, second)
    histories, _, timings = read_everything(run)
    assert [record.epoch for record in histories[0].records] == [0, 1, 2]
    assert len(timings) == 3
    assert "epoch-000003.npz cannot be used" in caplog.text
    assert "after epoch 2 are not read" in caplog.text
    found, _ = checkpoint.read_newest(run.checkpoints)
    assert found is not None
    assert found.manifest == second.manifest, "it can be resumed again"
    write_epochs(resumed, 3)
    assert read_everything(run)[0][0].last_epoch == 3


@pytest.mark.parametrize("epoch", [2, None])
def test_a_run_that_goes_back_can_be_stopped_again(run, epoch):
    """A sweep goes back where one of its runs was stopped before the others."""
    if epoch is None:
        start_journal(run.path)
        assert checkpoint.read_newest(run.checkpoints) == (None, [])
        assert run.metrics.read_bytes() == b""
    else:
        previous = read_checkpoint(checkpoint.epoch_path(run.checkpoints, epoch))
        start_journal(run.path, previous)
        assert read_newest(run).manifest == previous.manifest
        assert list(journal.verify(run, previous.manifest)) == []
        assert read_everything(run)[0][0].last_epoch == epoch


def test_without_a_checkpoint_every_complete_line_is_read(run):
    for path in checkpoint.candidates(run.checkpoints):
        path.unlink()
    assert read_everything(run)[0][0].last_epoch == 3


def test_a_checkpoint_of_another_version_does_not_verify_a_run(run):
    found = read_newest(run)
    later = found.manifest.model_copy(update={"format": checkpoint.FORMAT + 1})
    checkpoint.save_checkpoint(run.checkpoints, Checkpoint(later, found.arrays))
    with pytest.raises(ForeignRunError, match="is of another version"):
        read_everything(run)
