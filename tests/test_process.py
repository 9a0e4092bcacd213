"""Signals, closed pipes, full disks, unusual names and terminals do not damage a run."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import faults
import pytest
from helpers import SMALL, train_run

from plateau_train import config
from plateau_train.errors import OutOfMemoryError
from plateau_train.plots import background
from plateau_train.process import jax_variables, memory, signals
from plateau_train.run import checkpoint, journal
from plateau_train.run.directory import RunDirectory
from plateau_train.training import models, setup

# The program of the environment that the tests run in comes first.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


@pytest.fixture
def shell(tmp_path):
    """Return a function that runs a shell command with plateau-train on the path."""
    return partial(run_shell, tmp_path)


def run_shell(folder, line, **environment):
    return subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=os.environ | {"PATH": PATH} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


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


def test_a_pipe_that_does_not_block_gets_all_that_is_printed():
    program = (
        "import os; os.set_blocking(1, False); from plateau_train.process import stdio; "
        "stdio.install(); print('x' * 1_600_000)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as running:
        time.sleep(0.5)  # the pipe is full by now
        content, _ = running.communicate(timeout=60)
    assert (running.returncode, len(content)) == (0, 1_600_001)


def test_a_signal_ends_the_process_whose_run_cannot_be_read(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    signals.set_description(partial(setup.describe_stop, RunDirectory(tmp_path), ""))
    try:
        message, hint = signals.describe_stop("SIGINT")
    finally:
        signals.set_description(signals._describe_start)
    assert (message, hint) == ("stopped (SIGINT)", "start it again with the same command")


def test_closed_descriptors_are_not_used_for_other_files(shell, tmp_path):
    assert shell(f"{SMALL_RUN} <&- >&- 2>&-").returncode == 0
    assert_finished(tmp_path, 2)
    assert shell("plateau-train --patience=0 >&- 2>&-").returncode == 2


def test_names_control_neither_terminal_nor_markup(shell, processes, tmp_path):
    name = "r\x1b[31m [red]ü[/] x"
    finished = shell(f"{SMALL_RUN} --runs-dir={shlex.quote(name)} --name='[b] é'", LC_ALL="C")
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout + finished.stderr
    assert "\x1b" not in printed
    assert "r\\x1b[31m [red]ü[/] x/" in printed
    assert processes.run(tmp_path, "resume", f"{name}/latest", "--check").code == 0
    finished = processes.run(tmp_path, "resume", f"{name}/latest")
    assert "is done" in finished.stderr
    assert "\x1b" not in finished.stderr


def test_a_run_finishes_on_a_narrow_terminal(tmp_path):
    check_terminal(tmp_path, TERMINALS[0])


TERMINALS = ("stty cols 20;", "TERM=dumb", "TERM=xterm NO_COLOR=1")  # scripts/torture uses all


def check_terminal(folder, terminal):
    line = f"{terminal} {SMALL_RUN}"
    in_terminal = "import os, pty; print('code', os.waitstatus_to_exitcode(pty.spawn({})))"
    words = [sys.executable, "-c", in_terminal.format(["sh", "-c", line])]
    finished = run_shell(folder, f"{shlex.join(words)} < /dev/null")
    assert "code 0" in finished.stdout
    assert "2/2" in finished.stdout
    assert_finished(folder, 2)


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "drawing"),  # while data are loaded
        (signal.SIGTERM, "run  "),  # while jax compiles
        (signal.SIGHUP, "epoch 3/"),
    ],
)
def test_a_signal_ends_a_run_within_seconds_at_any_moment(processes, tmp_path, number, after):
    faults.check_signal(processes, tmp_path, number, after)


# The grace period is a minute, and the main thread never checks for a signal.
STUBBORN = """
import signal, sys, time
from plateau_train.process import signals

if len(sys.argv) > 2:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
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


def test_a_process_that_nohup_started_outlives_its_terminal():
    program = [sys.executable, "-c", STUBBORN, "0", "nohup"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, text=True, **pipes) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 143


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after epoch 1."""
    run = train_run(tmp_path, epochs="2", quiet="true")
    (run.directory.checkpoints / "epoch-000002.npz").unlink()
    for path in (run.directory.summary, run.directory.plot):
        path.unlink()
    return run.directory


def test_a_run_that_is_stopped_is_drawn(stopped):
    background.draw(stopped.path)
    assert stopped.plot.exists()


def test_a_run_that_was_continued_is_not_drawn_as_it_was(stopped, monkeypatch):
    def save(path, *_):
        path.touch()
        (stopped.checkpoints / "epoch-000002.npz").touch()

    monkeypatch.setattr(background, "save_run_plot", save)
    background.draw(stopped.path)
    assert not stopped.plot.exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError: "),
        (RuntimeError("can't start new thread"), "RuntimeError: can't start new thread"),
        (ImportError("a.so: failed to map segment from shared object"), "ImportError: a.so: "),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nwhere"), "9 bytes"),
    ],
)
def test_memory_that_is_refused_is_an_error_of_one_line(error, reason):
    with pytest.raises(OutOfMemoryError) as caught, memory.report_exhaustion():
        raise error
    (problem,) = caught.value.problems
    assert reason in problem
    assert "\n" not in problem
    assert caught.value.exit_code == 5


def test_memory_that_is_refused_is_not_said_to_be_an_error_of_the_network():
    with pytest.raises(OutOfMemoryError), models.explained(config.ModelSettings()):
        raise MemoryError


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="a bug"), memory.report_exhaustion():
        raise RuntimeError("a bug")


def test_too_little_address_space_is_reported_before_a_folder_is_made(shell, tmp_path):
    finished = shell(f"ulimit -v 1500000; {SMALL_RUN}")
    assert finished.returncode == 5
    error, hint = finished.stderr.splitlines()[-2:]
    assert error.startswith("error: the devices need 1.")
    assert "(ulimit -v)" in hint
    assert faults.runs_in(tmp_path) == []


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_here_is_reported_before_a_folder_is_made(shell, tmp_path, platform):
    finished = shell(SMALL_RUN, JAX_PLATFORMS=platform)
    assert finished.returncode == 2
    error, hint = finished.stderr.splitlines()[-2:]
    assert error.startswith(f"error: JAX_PLATFORMS={platform} names a device that cannot be used")
    assert hint.startswith("hint: unset JAX_PLATFORMS")
    assert faults.runs_in(tmp_path) == []


def test_variables_of_jax_change_no_result(shell, tmp_path, small_run):
    """Every setting that a run relies on is set otherwise."""
    otherwise = {
        name: {"0": "1", "1": "0", "allow": "disallow", "ignore": "raise"}.get(value, value)
        for name, value in jax_variables.VALUES.items()
    }
    otherwise |= {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    otherwise |= {"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"}
    otherwise |= {"JAX_OPTIMIZATION_LEVEL": "O0", "JAX_DEFAULT_DEVICE": "gpu"}
    finished = shell(f"{SMALL_RUN} --epochs=6", **otherwise)
    assert finished.returncode == 0, finished.stderr
    (run,) = faults.runs_in(tmp_path)
    metrics = (small_run / "metrics.jsonl").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == metrics
    resumed = shell("plateau-train resume runs/latest --check", **otherwise)
    assert resumed.returncode == 0, resumed.stderr


# What a start does, without training: 25 times, once all processes are there.
START = """
import sys
from pathlib import Path
from plateau_train.run.directory import RunDirectory

print("ready", flush=True)
sys.stdin.read()
for _ in range(25):
    run = RunDirectory.create(Path(sys.argv[1]), "same")
    run.config.touch()
    run.make_latest()
    with run.locked():
        print(run.path.name)
"""


def test_runs_that_start_at_once_get_different_folders(tmp_path):
    program = [sys.executable, "-c", START, str(tmp_path / "runs")]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        starting: list[Any] = [
            stack.enter_context(subprocess.Popen(program, **pipes)) for _ in range(4)
        ]
        assert [process.stdout.readline() for process in starting] == ["ready\n"] * 4
        for process in starting:
            process.stdin.close()
        names = [name for process in starting for name in process.stdout.read().split()]
    assert len(set(names)) == 100
    assert (tmp_path / "runs" / "latest").readlink().name in names
    assert len(list((tmp_path / "runs").iterdir())) == 101
