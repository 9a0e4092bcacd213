"""Signals, closed pipes, full disks, unusual names and terminals do not damage a run."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import faults
import pytest
from helpers import SMALL

from plateau_train.run import checkpoint, journal
from plateau_train.run.directory import RunDirectory

# The program of the environment that the tests run in comes first.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


@pytest.fixture
def shell(tmp_path):
    """Return a function that runs a shell command with plateau-train on the path."""

    def run(line, **environment):
        return subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path,
            env=os.environ | {"PATH": PATH} | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def assert_finished(tmp_path, epochs):
    """Check that there is one run, and that it is finished and undamaged."""
    (path,) = faults.runs_in(tmp_path)
    run = RunDirectory.open(path)
    assert run.summary.exists()
    newest, problems = checkpoint.read_newest(run.checkpoints)
    assert (newest and newest.manifest.epoch, problems) == (epochs, [])
    assert list(journal.verify(run, newest and newest.manifest)) == []
    assert len(run.metrics.read_text().splitlines()) == epochs + 1


SMALL_RUN = f"plateau-train {shlex.join(SMALL)} --epochs=2"


def test_a_reader_that_closes_the_pipe_does_not_end_the_training(shell, tmp_path):
    finished = shell(f"{{ {SMALL_RUN}; echo code $? >&2; }} | head -n 1")
    assert finished.stdout.startswith("epoch 0/2")
    assert finished.stderr.endswith("code 0\n")
    assert "Traceback" not in finished.stderr
    assert_finished(tmp_path, 2)


def test_a_full_device_at_stdout_is_reported_after_training(shell, tmp_path):
    finished = shell(f"{SMALL_RUN} > /dev/full")
    assert finished.returncode == 5
    *_, error, hint = finished.stderr.splitlines()
    assert error == "error: standard output could not be written: No space left on device"
    assert hint.startswith("hint: ")
    assert_finished(tmp_path, 2)
    assert shell("plateau-train config > /dev/full").returncode == 5


def test_closed_descriptors_are_not_used_for_other_files(shell, tmp_path):
    assert shell(f"{SMALL_RUN} <&- >&- 2>&-").returncode == 0
    assert_finished(tmp_path, 2)
    assert shell("plateau-train --patience=0 >&- 2>&-").returncode == 2


def test_names_control_neither_terminal_nor_markup(shell):
    name = "r\x1b[31m [red]ü[/] x"
    finished = shell(f"{SMALL_RUN} --runs-dir={shlex.quote(name)} --name='[b] é'", LC_ALL="C")
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout + finished.stderr
    assert "\x1b" not in printed
    assert "r\\x1b[31m [red]ü[/] x/" in printed
    latest = shlex.quote(f"{name}/latest")
    assert shell(f"plateau-train resume {latest} --check").returncode == 0
    finished = shell(f"plateau-train resume {latest}")
    assert "is done" in finished.stderr
    assert "\x1b" not in finished.stderr


@pytest.mark.parametrize("terminal", ["TERM=dumb", "stty cols 20;", "TERM=xterm NO_COLOR=1"])
def test_a_run_finishes_on_a_simple_terminal(shell, tmp_path, terminal):
    line = f"{terminal} {SMALL_RUN}"
    in_terminal = "import os, pty; print('code', os.waitstatus_to_exitcode(pty.spawn({})))"
    words = [sys.executable, "-c", in_terminal.format(["sh", "-c", line])]
    finished = shell(f"{shlex.join(words)} < /dev/null")
    assert "code 0" in finished.stdout
    assert "2/2" in finished.stdout
    assert_finished(tmp_path, 2)


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "drawing"),  # while data are loaded
        (signal.SIGTERM, "run  "),  # while jax compiles
        (signal.SIGINT, "epoch 3/"),
        (signal.SIGTERM, "epoch 3/"),
    ],
)
def test_a_signal_ends_a_run_within_seconds_at_any_moment(tmp_path, number, after):
    program = [sys.executable, "-m", "plateau_train", *SMALL, "--epochs=1000000"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(program, cwd=tmp_path, text=True, **pipes) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith(after):
                break
        running.send_signal(number)
        started = time.monotonic()
        rest, _ = running.communicate(timeout=60)
    # It takes a second on an idle machine.
    assert time.monotonic() - started < 5
    assert running.returncode == 128 + number
    *_, error, hint = rest.splitlines()
    assert error == f"error: stopped by {number.name}"
    assert "Traceback" not in rest
    runs = faults.runs_in(tmp_path)
    if runs:
        assert hint == f"hint: plateau-train resume runs/{runs[0].name} continues it"
    else:
        assert hint == "hint: start it again with the same command"
    if after.startswith("epoch"):
        events = (runs[0] / "events.jsonl").read_text()
        assert f"stopped by {number.name}" in events


# The grace period is a minute, and the main thread never checks for a signal.
STUBBORN = """
import sys, time
from plateau_train.process import signals

signals.install()
with signals.graceful_shutdown(float(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize(("grace", "stderr"), [("60", None), ("0", "/dev/full")])
def test_a_signal_ends_a_process_that_cannot_react_or_print(grace, stderr):
    """A second signal ends the grace period; an error that cannot be printed is dropped."""
    program = [sys.executable, "-c", STUBBORN, grace]
    with (
        open(stderr or os.devnull, "w") as errors,
        subprocess.Popen(program, stdout=subprocess.PIPE, stderr=errors, text=True) as running,
    ):
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        started = time.monotonic()
        running.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 143
        assert time.monotonic() - started < 50


def test_runs_that_start_at_once_get_different_folders(tmp_path):
    # Not forked: this process may have threads of JAX.
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        names = list(pool.map(faults.make_folder, [tmp_path / "runs"] * 100))
    assert len(set(names)) == 100
    assert (tmp_path / "runs" / "latest").readlink().name in names
    assert len(list((tmp_path / "runs").iterdir())) == 101
