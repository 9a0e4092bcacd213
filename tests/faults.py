"""Break runs in every way, and check that none is lost: for the tests and for scripts/torture.

Each run and each resume is a new process. ``Processes`` forks it from a server that has imported
everything and done nothing: a process as new as one started by Python, in a fraction of the time.
With JAX_COMPILATION_CACHE_DIR set, the processes share compiled programs.
"""

import atexit
import errno
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
from helpers import SMALL, epochs_printed

from plateau_train import config
from plateau_train.data import garments
from plateau_train.errors import RunError
from plateau_train.run import checkpoint, journal
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run
from plateau_train.run.records import Drop, Ending
from plateau_train.training import setup

CRASHED = 99
FILES = ("stdout", "stderr", "operations")  # of a process
# By the server, so that no process has to: all that a command that trains imports.
IMPORTED = (
    "matplotlib.backends.backend_agg", "plateau_train.cli", "plateau_train.plots.panels",
    "plateau_train.training.loop", "rich.progress",
)  # fmt: skip
OPERATIONS = (
    "open", "write", "fsync", "ftruncate", "replace", "link", "unlink", "symlink", "mkdir",
    "makedirs", "rmdir",
)  # fmt: skip
REFUSALS = {name: getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS")}
BROKEN = "broken"  # the disk refuses an operation and all those after it


class Finished(NamedTuple):
    code: int  # negative: the signal that ended it
    stdout: str
    stderr: str
    operations: list[str]  # its changes of the disk, in order
    num_bytes: list[int]  # written by each of them
    seconds: float


class Processes:
    """A server of new processes, each of which runs one command in a folder."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "NPROC": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, folder: Path, *arguments: object, **trouble: Any) -> Finished:
        """Run a command in a folder; for ``trouble`` see ``run_at_once``."""
        (finished,) = self.run_at_once([(folder, *arguments)], **trouble)
        return finished

    def run_at_once(
        self,
        commands: Iterable[Sequence[object]],
        *,
        fault: str | None = None,
        at: int | str = 0,
        kill_after: float | None = None,
        send: tuple[int, int, str] | None = None,
        draws: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> list[Finished]:
        """Run several commands, each a folder and arguments, all at the same time.

        ``fault`` strikes at the operation ``at``, SIGKILL after some seconds. ``at`` is the number
        of the operation, or a text in the name of a file: its first one. ``send`` is a signal, the
        index of the process that it is sent to, and the beginning of a line: it is sent when
        process 0 has printed that; ``seconds`` are counted from then on. ``draws`` draws the
        panels of runs instead of an empty picture. ``environment`` is that of the processes
        instead of that of the server. Of the variables that JAX reads when it is imported, only
        JAX_NUM_CPU_DEVICES has an effect.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        words = [list(map(str, command)) for command in commands]
        task = {"commands": words, "fault": fault, "at": at, "kill_after": kill_after}
        task |= {"draws": draws, "send": send}
        task |= {"environment": environment and dict(environment)}
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        return [Finished(**answer) for answer in json.loads(self._server.stdout.readline())]

    def close(self) -> None:
        self._server.communicate("")


@cache
def shared() -> Processes:
    """Return the server that the tests of a process share; it ends when they do."""
    server = Processes()
    atexit.register(server.close)
    return server


class FaultyOs:
    """The module ``os`` for ``storage``: counts the changes of the disk, and one of them fails.

    ``crash`` ends the process before the operation, ``tear`` in the middle of a write. ``power``
    is a crash after which half of the bytes that no ``fsync`` brought to the disk are lost. A name
    of ``REFUSALS`` is the error that the operation fails with; after ``broken`` all others fail.
    """

    def __init__(self, fault: str | None, at: int | str, log: TextIO) -> None:
        self._fault, self._at, self._log = fault, at, log
        self._count = 0
        self._is_broken = False
        self._synced: dict[str, int] = {}  # bytes on the disk, of each file that has more

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in OPERATIONS:
            return function

        def operation(*arguments, **keywords):
            self._count += 1
            self._log.write(f"{name} {len(arguments[1]) if name == 'write' else 0}\n")
            self._log.flush()
            if self._is_broken or (self._fault and self._is_due(arguments)):
                self._strike(name, arguments)
            if name == "write":
                path = _path_of(arguments[0])
                self._synced.setdefault(path, os.path.getsize(path))
            result = function(*arguments, **keywords)
            self._watch(name, arguments)
            return result

        return operation

    def _is_due(self, arguments) -> bool:
        if isinstance(self._at, str):
            return any(self._at in str(argument) for argument in arguments)
        return self._count == self._at

    def _watch(self, name, arguments) -> None:
        """Record which files are on the disk as a whole."""
        if name == "fsync":
            self._synced.pop(_path_of(arguments[0]), None)
        elif name == "replace":
            old, new = map(os.path.abspath, arguments)
            self._synced.pop(new, None)
            if old in self._synced:
                self._synced[new] = self._synced.pop(old)

    def _strike(self, name, arguments) -> None:
        self._is_broken = self._fault == BROKEN
        if self._is_broken or self._fault in REFUSALS:
            number = REFUSALS.get(self._fault or "", errno.EIO)
            raise OSError(number, os.strerror(number))
        if self._fault == "tear" and name == "write":
            os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self._fault == "power":
            for path, synced in self._synced.items():
                if os.path.exists(path):
                    os.truncate(path, (synced + os.path.getsize(path)) // 2)
        os._exit(CRASHED)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


# A run of a second. Twelve steps an epoch and windows of five: epochs end inside of windows.
TINY = (
    "--dataset=garments", "--train-examples=60", "--test-examples=30", "--batch-size=5",
    "--hidden-sizes=", "--accumulation-size=5", "--learning-rate=0.05",
)  # fmt: skip
# What is struck has drops within two epochs; what is killed has a wait and a cooldown to lose.
SHORT = (*TINY, "--patience=1", "--rtol=0.9", "--epochs=2")
LONG = (*TINY, "--patience=3", "--cooldown=2", "--rtol=0.05", "--factor=0.9", "--epochs=40")


class Result(NamedTuple):
    """The result of a run, which must not depend on how often the run was stopped."""

    metrics: bytes
    drops: list[Sequence[Drop]]
    endings: list[Ending | None]
    summary: bytes
    arrays: dict[str, bytes]
    best_epoch: int


def result_of(run: Path) -> Result:
    """Read the result of a finished run, and check that its folder is intact and has no leftovers.

    Every checkpoint that is kept must agree with the files of the run.
    """
    opened = Run.open(run)
    directory = opened.directory
    newest, problems = checkpoint.read_newest(directory.checkpoints)
    assert newest is not None
    assert problems == []
    assert not list(run.rglob("*.tmp")), "a temporary file was left behind"
    for path in checkpoint.candidates(directory.checkpoints):
        manifest = checkpoint.read_checkpoint(path).manifest
        assert not list(journal.verify(directory, manifest)), path
    lengths = {name: state.num_bytes for name, state in newest.manifest.files.items()}
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert (run / name).stat().st_size == lengths[name], f"{name} has uncommitted lines"
    assert [timing.epoch for timing in opened.timings] == list(range(newest.manifest.epoch + 1))
    assert directory.plot.exists()
    return Result(
        metrics=directory.metrics.read_bytes(),
        drops=[history.drops for history in opened.histories],
        endings=[history.ending for history in opened.histories],
        summary=directory.summary.read_bytes(),
        arrays={name: array.tobytes() for name, array in newest.arrays.items()},
        best_epoch=checkpoint.read_checkpoint(
            directory.checkpoints / checkpoint.BEST
        ).manifest.epoch,
    )


def runs_in(folder: Path) -> list[Path]:
    """List the run folders, without the link ``latest``."""
    runs = folder / "runs"
    paths = sorted(runs.iterdir()) if runs.exists() else []
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def resume_or_start(
    processes: Processes, folder: Path, arguments: Sequence[str], **trouble: Any
) -> Finished:
    """Continue the run that a stopped process left; where it left none, start one."""
    runs = runs_in(folder)
    if runs:
        finished = processes.run(folder, "resume", runs[-1], **trouble)
        if finished.code != 4 or "is not a run folder" not in finished.stderr:
            return finished
        # Stopped between the folder and its config.toml, before anything was printed or trained.
        assert list(runs[-1].rglob("*.npz")) == []
        shutil.rmtree(runs[-1])
    return processes.run(folder, *arguments, **trouble)


def strike(
    processes: Processes, folder: Path, fault: str, at: int, expected: Result, *, resume=True
) -> None:
    """Let the next process in a folder fail at one operation, then check that nothing is lost.

    The process starts a run, or resumes the one that is there. Afterwards the run is resumed and
    must have the expected result; without ``resume`` only its files are verified.
    """
    epochs = [checkpoint.last_epoch(run / "checkpoints") for run in runs_in(folder)]
    leftovers = set(folder.rglob("*.tmp"))  # of the process before
    struck = resume_or_start(processes, folder, SHORT, fault=fault, at=at)
    where = f"{fault} at operation {at}, {struck.operations[at - 1]}"
    refused = fault in REFUSALS or fault == BROKEN
    assert struck.code in ((0, 5) if refused else (CRASHED,)), f"{where}: {struck.stderr}"
    assert "Traceback" not in struck.stderr, f"{where}: {struck.stderr}"
    if refused:
        left = set(folder.rglob("*.tmp")) - leftovers
        assert fault == BROKEN or not left, f"{where} left a temporary file"
        if struck.code == 5:
            lines = struck.stderr.splitlines()
            assert [line.split(":")[0] for line in lines[-2:]] == ["error", "hint"], struck.stderr
            assert os.strerror(REFUSALS.get(fault, errno.EIO)) in lines[-2], where
            epochs += epochs_printed(struck.stdout)
            last = -1 if not epochs or epochs[-1] is None else epochs[-1]
            safe = f"epoch {last} is safe" if last >= 0 else "no epoch is done"
            further = f"epoch {last + 1} is safe"  # committed, and not yet printed
            if "its picture could not be drawn" in lines[-2]:
                assert re.search(r" plot \S*runs/", lines[-1]), where
            elif "runs/latest" not in lines[-2] and any(folder.glob("runs/*/config.toml")):
                assert safe in lines[-1] or further in lines[-1], f"{where}: {lines[-1]}"
    if not resume:
        for run in runs_in(folder):
            assert list(setup.check(RunDirectory(run), config.resolve({}))), where
        return
    again = resume_or_start(processes, folder, SHORT)
    assert again.code == 0, f"{where}, then {again.stderr}"
    before, after = epochs_printed(struck.stdout), epochs_printed(again.stdout)
    if before and after:
        assert after[0] > before[-1], f"{where}: epoch {before[-1]} was printed and lost"
    (run,) = runs_in(folder)
    try:
        assert result_of(run) == expected
    except AssertionError as error:
        raise AssertionError(f"{where}, and then: {error}") from error


def kill(processes: Processes, folder: Path, count: int, seed: int, expected: Result) -> int:
    """Kill runs at random moments, some number of times; return how many were finished.

    A killed run is resumed, and every finished run must have the result of an unbroken one.
    """
    dice = random.Random(seed)
    kills = done = 0
    printed: list[int] = []
    while kills < count or printed:
        kill_after = dice.uniform(0, 1.5) if kills < count else None
        finished = resume_or_start(processes, folder, LONG, kill_after=kill_after)
        assert finished.code in (0, -signal.SIGKILL), finished.stderr
        epochs = epochs_printed(finished.stdout)
        if printed and epochs:
            assert epochs[0] > printed[-1], f"epoch {printed[-1]} was printed and lost"
        printed = epochs or printed
        if finished.code == 0:
            (run,) = runs_in(folder)
            assert result_of(run) == expected
            shutil.rmtree(run)
            done, printed = done + 1, []
        else:
            kills += 1
            printed = printed or [-1]
    return done


SWEEP = ("sweep", *TINY, "--patience=1,2", "--rtol=0.9", "--epochs=2", "--name=sweep")


def stop_sweep(processes: Processes, folder: Path, stops: Mapping[int, Sequence[int]]) -> int:
    """Stop a sweep of two runs when one has committed an epoch and the other has not.

    The first run then goes back. ``stops`` has for these epochs the operations at which the
    resumes are stopped, before they get any further. Returns how many resumes were stopped.
    """
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir()
    broken.mkdir()
    assert processes.run(whole, *SWEEP).code == 0
    for epoch, operations in stops.items():
        name = f"002-patience=2/checkpoints/epoch-{epoch:06}"
        command = ("resume", *runs_in(broken)) if runs_in(broken) else SWEEP
        stopped = processes.run(broken, *command, fault="crash", at=name)
        assert stopped.code == CRASHED
        (sweep,) = runs_in(broken)
        first, second = (
            list(run.glob(f"checkpoints/epoch-{epoch:06}*")) for run in sweep.glob("0*")
        )
        assert len(first) + len(second) == 1
        for at in operations:
            again = processes.run(broken, "resume", sweep, fault="crash", at=at)
            assert again.code == CRASHED, again.stderr
    ended = processes.run(broken, "resume", *runs_in(broken))
    assert ended.code == 0, ended.stderr
    expected, actual = (
        [result_of(run) for run in sorted(runs_in(place)[0].glob("0*"))]
        for place in (whole, broken)
    )
    assert len(expected) == 2
    assert actual == expected
    return sum(map(len, stops.values()))


def check_signal(processes: Processes, folder: Path, number: int, after: str) -> None:
    """Send a signal after a line of output, and check that the run ends within seconds.

    It takes a second on an idle machine.
    """
    (ended,) = processes.run_at_once(
        [(folder, *SMALL, "--epochs=1000000")], send=(number, 0, after)
    )
    assert ended.seconds < 5
    assert ended.code == 128 + number, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "error" not in ended.stderr
    name = signal.Signals(number).name
    lines = ended.stderr.splitlines()
    if not runs_in(folder):
        hint = "hint: start it again with the same command"
        assert lines[-2:] == [f"stopped ({name})", hint]
        return
    (path,) = runs_in(folder)
    go_on = f"hint: plateau-train resume runs/{path.name} continues it"
    if not any(path.glob("checkpoints/epoch-*")):
        assert lines[-2:] == [f"stopped before epoch 0 was finished ({name})", go_on]
        return
    message = f"stopped after epoch {checkpoint.last_epoch(path / 'checkpoints')} ({name})"
    look = f"hint: plateau-train plot runs/{path.name} draws what it has so far"
    assert lines[-3:] == [message, go_on, look]
    if after.startswith("epoch"):  # the process ends by itself
        events = (path / "events.jsonl").read_text()
        assert f'"interrupted","message":"{message}"' in events
        deadline = time.monotonic() + 60
        while not (path / "plot.png").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def check_sizes(processes: Processes, folder: Path, num_seeds: int) -> None:
    """Check that each of the files of an epoch grows as much in late epochs as in early ones.

    These are lines of metrics, lines of timings, and a checkpoint.
    """
    flags = ("--schedule=constant", "--epochs=43", f"--seed=0-{num_seeds - 1}")
    finished = processes.run(folder, *TINY, *flags)
    assert finished.code == 0, finished.stderr
    written = [size for size in finished.num_bytes if size]
    # Before them are config.toml and environment.json; after them the last event and two files.
    lines, timings, checkpoints = (written[2 + start :: 3] for start in range(3))
    digits = 20 * num_seeds  # of numbers, in each of some ten columns
    for sizes, tolerance in ((lines, 10 * digits), (timings, 40), (checkpoints, 40)):
        early, late = sizes[4:9], sizes[37:42]
        assert abs(max(late) - max(early)) <= tolerance


def flip(path: Path, flips: int, cuts: int, seed: int) -> None:
    """Damage a checkpoint in many ways, and check that every damage is found."""
    dice = random.Random(seed)
    content = path.read_bytes()
    checkpoint.read_checkpoint(path)
    for number in range(flips + cuts):
        damaged = bytearray(content)
        if number < flips:
            damaged[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        else:
            del damaged[dice.randrange(len(content)) :]
        path.write_bytes(damaged)
        try:
            checkpoint.read_checkpoint(path)
        except RunError:
            continue
        raise AssertionError(f"damage {number} of seed {seed} was not found")


def fuzz(processes: Processes, folder: Path, count: int, seed: int) -> None:
    """Put random bytes into a run's files, and check that every command reports the damage.

    Where the history is damaged and the checkpoint is not, no command may succeed with it.
    """
    dice = random.Random(seed)
    last = "checkpoints/epoch-000002.npz"
    names = ("config.toml", "environment.json", *journal.FILES, last)
    (whole,) = runs_in(folder)
    manifest = checkpoint.read_checkpoint(whole / last).manifest
    for number in range(count):
        run = folder / f"fuzzed {number}" / "runs" / "run"
        shutil.copytree(whole, run)
        chosen = dice.sample(names, dice.choice((1, 1, 2, 4)))
        for name in chosen:
            path = run / name
            noise = dice.randbytes(dice.choice((0, 1, 10, 1000)))
            content = path.read_bytes()
            keep = dice.choice((0, dice.randrange(len(content)), len(content)))
            path.write_bytes(content[:keep] + noise)
        must_refuse = last not in chosen and any(journal.verify(RunDirectory(run), manifest))
        for command in (
            ["plot", run], ["schedule", run], ["compare", whole, run], ["runs"],
            ["evaluate", run, "--checkpoint=last"], ["resume", run, "--check"], ["resume", run],
        ):  # fmt: skip
            finished = processes.run(run.parents[1], *command)
            where = f"{command} of fuzz {number}, seed {seed}: {finished.stderr}"
            assert finished.code in (0, 2, 4), where
            assert "Traceback" not in finished.stderr, where
            if must_refuse and command[0] not in ("runs", "evaluate"):
                assert finished.code == 4, where


def unbroken(
    processes: Processes, folder: Path, arguments: Sequence[str]
) -> tuple[Result, list[str]]:
    """Return the result of a run that is never stopped, and its changes of the disk."""
    finished = processes.run(folder, *arguments)
    assert finished.code == 0, finished.stderr
    (run,) = runs_in(folder)
    return result_of(run), finished.operations


def serve() -> None:
    """Fork a process for each line of stdin, and write how it ended to stdout."""
    for name in IMPORTED:
        importlib.import_module(name)
    for num_train, num_test in ((60, 30), (600, 300)):  # what most runs train on; see helpers
        garments.draw(num_train, seed=garments.TRAIN_SEED)
        garments.draw(num_test, seed=garments.TEST_SEED)

    for line in sys.stdin:
        task = json.loads(line)
        scratch = Path(tempfile.mkdtemp(prefix="plateau-train-processes-"))
        places = {}
        for number, command in enumerate(task["commands"]):
            place = scratch / f"{number}"
            place.mkdir()
            for name in FILES:  # a process that is killed at once would leave none
                (place / name).touch()
            child = os.fork()
            if child == 0:
                _become(task, command, place)
            places[child] = place
        started = time.monotonic()
        started = _send_signals(task, places) or started
        answers = {}
        while len(answers) < len(places):
            child, status = os.wait()
            out, err, operations = (
                (places[child] / name).read_text(errors="replace") for name in FILES
            )
            code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - started
            names, sizes = operations.split()[::2], list(map(int, operations.split()[1::2]))
            answers[child] = Finished(code, out, err, names, sizes, seconds)._asdict()
        shutil.rmtree(scratch)
        print(json.dumps([answers[child] for child in places]), flush=True)


def _send_signals(task: dict[str, Any], places: dict[int, Path]) -> float | None:
    """Send the signals of a task to its processes; return when, if a line of output was due."""
    if task["kill_after"] is not None:
        time.sleep(task["kill_after"])
        for child in places:
            os.kill(child, signal.SIGKILL)
    if task["send"] is None:
        return None
    number, index, beginning = task["send"]
    first, *_ = places.values()
    _wait_for_line(first, beginning)
    sent = time.monotonic()
    os.kill(list(places)[index], number)
    return sent


def _wait_for_line(place: Path, beginning: str) -> None:
    """Wait, for up to a minute, until a process has printed a line with this beginning."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for name in FILES[:2]:
            printed = (place / name).read_text(errors="replace")
            if any(line.startswith(beginning) for line in printed.splitlines()):
                return
        time.sleep(0.01)


def _become(task: dict[str, Any], command: list[str], place: Path) -> None:
    """Turn a forked process into one that runs the command, and never return."""
    code = 1
    signal.alarm(120)  # a process that does not end is no reason to wait for ever
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests
    try:
        for descriptor, name in enumerate(FILES[:2], start=1):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        folder, *arguments = command
        sys.argv = ["plateau-train", *arguments]
        if task["environment"] is not None:
            os.environ.clear()
            os.environ |= task["environment"]
        if "JAX_NUM_CPU_DEVICES" in os.environ:
            jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
        os.chdir(folder)
        log = (place / FILES[2]).open("w")
        from matplotlib.figure import Figure

        from plateau_train.__main__ import main
        from plateau_train.plots import panels
        from plateau_train.run import storage

        if not task["draws"]:  # as many files, in a tenth of the time
            small = Figure(figsize=(1, 1))
            panels.draw_run = lambda *_, **__: small
        storage.os = FaultyOs(task["fault"], task["at"], log)  # pyright: ignore[reportAttributeAccessIssue]
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
