"""What the world does to a program: signals, closed pipes, full disks, odd names and terminals."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import faults
import pytest
from conftest import SMALL

from plateau_train.run import checkpoint
from plateau_train.run.directory import RunDirectory

PROGRAM = f"{shlex.quote(sys.executable)} -m plateau_train"


@pytest.fixture
def shell(tmp_path):
    """Run a line of shell in which plateau-train stands for this program."""

    def run(line, **environment):
        return subprocess.run(
            ["sh", "-c", line.replace("plateau-train", PROGRAM)],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def whole(tmp_path, epochs):
    """Return the one run that was made, and hold that it is finished and sound."""
    (path,) = faults.runs_in(tmp_path)
    run = RunDirectory.open(path)
    assert run.summary.exists()
    newest, reasons = checkpoint.read_newest(run.checkpoints)
    assert (newest and newest.manifest.epoch, reasons) == (epochs, [])
    assert len(run.metrics.read_text().splitlines()) == epochs + 1


SMALL_RUN = f"plateau-train {shlex.join(SMALL)} --epochs=2"


def test_a_reader_that_goes_away_does_not_end_the_training(shell, tmp_path):
    ended = shell(f"{{ {SMALL_RUN}; echo code $? >&2; }} | head -n 1")
    assert ended.stdout.startswith("epoch 0/2")
    assert ended.stderr.endswith("code 0\n")
    assert "Traceback" not in ended.stderr
    whole(tmp_path, 2)


def test_a_full_device_behind_stdout_does_not_end_the_training_but_is_told(shell, tmp_path):
    ended = shell(f"{SMALL_RUN} > /dev/full")
    assert ended.returncode == 5
    *_, error, hint = ended.stderr.splitlines()
    assert error == "error: standard output could not be written: No space left on device"
    assert hint.startswith("hint: ")
    whole(tmp_path, 2)
    assert shell("plateau-train config > /dev/full").returncode == 5


def test_closed_descriptors_are_nobodys_files(shell, tmp_path):
    assert shell(f"{SMALL_RUN} <&- >&- 2>&-").returncode == 0
    whole(tmp_path, 2)
    assert shell("plateau-train --patience=0 >&- 2>&-").returncode == 2


def test_names_can_steer_neither_the_terminal_nor_the_markup(shell):
    name = "r\x1b[31m [red]ü[/] x"
    ended = shell(f"{SMALL_RUN} --runs-dir={shlex.quote(name)} --name='[b] é'", LC_ALL="C")
    assert ended.returncode == 0, ended.stderr
    printed = ended.stdout + ended.stderr
    assert "\x1b" not in printed
    assert "r\\x1b[31m [red]ü[/] x/" in printed
    latest = shlex.quote(f"{name}/latest")
    assert shell(f"plateau-train resume {latest} --check").returncode == 0
    ended = shell(f"plateau-train resume {latest}")
    assert "is done" in ended.stderr
    assert "\x1b" not in ended.stderr


@pytest.mark.parametrize("terminal", ["TERM=dumb", "stty cols 20;", "TERM=xterm NO_COLOR=1"])
def test_no_terminal_is_too_poor(shell, tmp_path, terminal):
    line = f"{terminal} {SMALL_RUN}".replace("plateau-train", PROGRAM)
    in_terminal = "import os, pty; print('code', os.waitstatus_to_exitcode(pty.spawn({})))"
    words = [sys.executable, "-c", in_terminal.format(["sh", "-c", line])]
    ended = shell(f"{shlex.join(words)} < /dev/null")
    assert "code 0" in ended.stdout
    assert "2/2" in ended.stdout
    whole(tmp_path, 2)


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "drawing"),  # while data are loaded
        (signal.SIGTERM, "run  "),  # while jax compiles
        (signal.SIGINT, "epoch 3/"),
        (signal.SIGTERM, "epoch 3/"),
    ],
)
def test_a_signal_ends_a_run_at_once_at_any_moment(tmp_path, number, after):
    arguments = [sys.executable, "-m", "plateau_train", *SMALL, "--epochs=1000000"]
    with subprocess.Popen(
        arguments, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith(after):
                break
        running.send_signal(number)
        started = time.monotonic()
        rest, _ = running.communicate(timeout=60)
    # A second on an idle machine; its clock is not what is tested.
    assert time.monotonic() - started < 5
    assert running.returncode == 128 + number
    *_, error, hint = rest.splitlines()
    assert error == f"error: stopped by {number.name}"
    assert "Traceback" not in rest
    runs = faults.runs_in(tmp_path)
    if runs:
        (run,) = runs
        assert hint == f"hint: plateau-train resume runs/{run.name} continues it"
    else:
        assert hint == "hint: start it again with the same command"
    if after.startswith("epoch"):
        events = (run / "events.jsonl").read_text()
        assert f"stopped by {number.name}" in events


def test_a_second_signal_does_not_wait(tmp_path):
    arguments = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        started = time.monotonic()
        running.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 143
        assert time.monotonic() - started < 50


# Its grace is a minute, and its main thread never looks.
STUBBORN = """
import time
from plateau_train.process import signals

signals.install()
with signals.graceful_shutdown(60):
    print("ready", flush=True)
    time.sleep(100)
"""


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    # Not forked: this process may have threads of jax.
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        names = list(pool.map(faults.make_folder, [tmp_path / "runs"] * 100))
    assert len(set(names)) == 100
    assert (tmp_path / "runs" / "latest").readlink().name in names
    assert len(list((tmp_path / "runs").iterdir())) == 101
