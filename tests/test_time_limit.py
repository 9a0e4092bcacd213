"""``--max-time`` stops a run after an epoch, and the run continues to the same bytes."""

import shutil
from types import SimpleNamespace

import faults
import pytest
from helpers import epochs_printed

from plateau_train.config import RunSettings
from plateau_train.process import clock
from plateau_train.run.reader import Run
from plateau_train.run.records import Notice
from plateau_train.training import time_limit
from plateau_train.training.time_limit import TimeLimit

SETTINGS = (*faults.TINY, "--patience=1", "--rtol=0.9", "--epochs=3")


@pytest.fixture(scope="module")
def limited(processes, tmp_path_factory):
    """A folder with a run whose limit was over when it began, and how it ended."""
    folder = tmp_path_factory.mktemp("limited")
    return folder, processes.run(folder, *SETTINGS, "--max-time=0.01")


@pytest.fixture
def at(monkeypatch):
    """Return a function that sets the time since the command began, in seconds."""
    monkeypatch.setattr(clock, "_began", 1000.0)

    def set_time(seconds):
        fake = SimpleNamespace(monotonic=lambda: 1000.0 + seconds)
        monkeypatch.setattr(time_limit, "time", fake)

    return set_time


def test_the_next_epoch_must_fit_if_it_takes_as_long_as_the_longest_recent_one(at):
    limit = TimeLimit(RunSettings(max_time="100"))
    at(500)
    assert limit.permits_epoch(), "the first epoch of a command is always trained"
    for seconds in (30, 10, 20):
        limit.add_epoch(seconds)
    at(70)
    assert (limit.permits_epoch(), limit.is_reached) == (True, False)
    at(71)
    assert (limit.permits_epoch(), limit.is_reached) == (False, True)
    for _ in range(time_limit.NUM_RECENT):
        limit.add_epoch(10)
    at(90)
    assert limit.permits_epoch(), "a slow epoch is forgotten"


def test_a_limit_that_is_over_lets_a_command_train_one_epoch(limited):
    folder, ended = limited
    assert ended.code == 0, ended.stderr
    assert epochs_printed(ended.stdout) == [0, 1]
    (path,) = faults.runs_in(folder)
    message = "stopped after epoch 1 (--max-time 0.01)"
    assert ended.stderr.splitlines()[-3:] == [
        message,
        f"hint: plateau-train resume runs/{path.name} continues it",
        f"hint: plateau-train plot runs/{path.name} draws what it has so far",
    ]
    run = Run.open(path)
    assert (run.state, run.directory.plot.exists()) == ("stopped", True)
    assert [event for event in run.events if isinstance(event, Notice)] == [
        Notice(event="interrupted", message=message)
    ]


def test_resumes_keep_the_limit_and_end_like_a_run_without_one(processes, limited, tmp_path):
    shutil.copytree(limited[0] / "runs", tmp_path / "limited" / "runs", symlinks=True)
    (path,) = faults.runs_in(tmp_path / "limited")
    again = processes.run(tmp_path, "resume", path, "--quiet")
    assert (again.code, again.stdout) == (0, f"{path}\n"), again.stderr
    assert "stopped" not in again.stderr
    assert (Run.open(path).state, Run.open(path).histories[0].last_epoch) == ("stopped", 2)
    last = processes.run(tmp_path, "resume", path, "--max-time=none", "--no-quiet")
    assert epochs_printed(last.stdout) == [3]
    (tmp_path / "whole").mkdir()
    whole, _ = faults.unbroken(processes, tmp_path / "whole", SETTINGS)
    assert faults.result_of(path) == whole
    (tmp_path / "long").mkdir()
    assert faults.unbroken(processes, tmp_path / "long", (*SETTINGS, "--max-time=9h"))[0] == whole
