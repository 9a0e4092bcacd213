"""Break runs in every way, and hold that none is lost: for the tests and for scripts/torture.

Each run and each resume is a new process. ``Processes`` forks it from a server that has imported
everything and done nothing, which is as new as after a start of Python in a fraction of the time.
Set JAX_COMPILATION_CACHE_DIR, and they share what is compiled.
"""

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
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from plateau_train import config
from plateau_train.errors import RunError
from plateau_train.run import checkpoint, journal
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run
from plateau_train.training import setup

CRASHED = 99
FILES = ("stdout", "stderr", "operations")  # of a process
OPERATIONS = (
    "open", "write", "fsync", "replace", "link", "unlink", "symlink", "mkdir", "makedirs",
)  # fmt: skip
REFUSALS = {name: getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS")}


class Finished(NamedTuple):
    code: int  # negative: the signal that ended it
    stdout: str
    stderr: str
    operations: list[str]  # the changes of the disk that it made, one after the other
    seconds: float


class Processes:
    """A server of new processes, each of which runs one command in a folder."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"NPROC": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, folder, *arguments, fault=None, at=0, kill_after=None) -> Finished:
        """Run a command; ``fault`` strikes at the operation ``at``, SIGKILL after some seconds.

        ``at`` is the number of the operation, or a text in the name of a file: its first one.
        """
        task = {"fault": fault, "at": at, "kill_after": kill_after}
        (finished,) = self.run_at_once(folder, [arguments], **task)
        return finished

    def run_at_once(self, folder, commands, *, fault=None, at=0, kill_after=None) -> list[Finished]:
        """Run several commands in one folder, all at the same time."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        task = {
            "folder": str(folder), "commands": [list(map(str, command)) for command in commands],
            "fault": fault, "at": at, "kill_after": kill_after,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        return [Finished(**answer) for answer in json.loads(self._server.stdout.readline())]

    def close(self) -> None:
        self._server.communicate("")


class FaultyOs:
    """The module ``os`` for ``storage``, which counts what changes the disk, and goes wrong once.

    ``crash`` ends the process before the operation, ``tear`` in the middle of a write. ``power``
    is a crash after which all that was not brought to the disk is lost: half of each such file.
    A name of ``REFUSALS`` is the error that the operation fails with.
    """

    def __init__(self, fault, at, log) -> None:
        self._fault, self._at, self._log = fault, at, log
        self._count = 0
        self._unsynced = {}

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in OPERATIONS:
            return function

        def operation(*arguments, **keywords):
            self._count += 1
            self._log.write(f"{name}\n")
            self._log.flush()
            if self._fault and self._is_due(arguments):
                self._strike(name, arguments)
            result = function(*arguments, **keywords)
            self._watch(name, arguments, result)
            return result

        return operation

    def _is_due(self, arguments) -> bool:
        if isinstance(self._at, str):
            return any(self._at in str(argument) for argument in arguments)
        return self._count == self._at

    def _watch(self, name, arguments, result) -> None:
        """Keep account of the files whose content may still be in memory alone."""
        if name == "write":
            self._unsynced[arguments[0]] = os.readlink(f"/proc/self/fd/{arguments[0]}")
        elif name == "fsync":
            self._unsynced.pop(arguments[0], None)
        elif name == "open":
            stale = self._unsynced.pop(result, None)
            if stale is not None:
                self._unsynced[f"closed {self._count}"] = stale
        elif name == "replace":
            old, new = map(os.path.abspath, arguments)
            self._unsynced = {
                key: new if path == old else path
                for key, path in self._unsynced.items()
                if path != new  # which is gone
            }

    def _strike(self, name, arguments) -> None:
        if self._fault in REFUSALS:
            number = REFUSALS[self._fault]
            raise OSError(number, os.strerror(number))
        if self._fault == "tear" and name == "write":
            os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self._fault == "power":
            for path in self._unsynced.values():
                if os.path.exists(path):
                    os.truncate(path, os.path.getsize(path) // 2)
        os._exit(CRASHED)


# A run of a second. Twelve steps an epoch and windows of five: epochs end inside of windows.
TINY = (
    "--dataset=garments", "--train-examples=60", "--test-examples=30", "--batch-size=5",
    "--hidden-sizes=", "--accumulation-size=5", "--learning-rate=0.05",
)  # fmt: skip
# What is struck has drops within two epochs; what is killed has a wait and a cooldown to lose.
SHORT = (*TINY, "--patience=1", "--rtol=0.9", "--epochs=2")
LONG = (*TINY, "--patience=3", "--cooldown=2", "--rtol=0.05", "--factor=0.9", "--epochs=40")


class Result(NamedTuple):
    """What a run comes to, which must not depend on how often it was stopped."""

    metrics: bytes
    drops: list
    summary: bytes
    arrays: dict
    best_epoch: int


def result_of(run: Path) -> Result:
    """Read what a finished run came to, and hold that nothing else is left in its folder."""
    directory = RunDirectory.open(run)
    newest, reasons = checkpoint.read_newest(directory.checkpoints)
    assert newest is not None
    assert reasons == []
    assert not list(run.rglob("*.tmp")), "a temporary file was left behind"
    best = checkpoint.read_checkpoint(directory.checkpoints / checkpoint.BEST)
    assert not list(journal.verify(directory, newest.manifest))
    assert directory.plot.exists()
    return Result(
        metrics=directory.metrics.read_bytes(),
        drops=[drop for history in Run(directory).histories for drop in history.drops],
        summary=directory.summary.read_bytes(),
        arrays={name: array.tobytes() for name, array in newest.arrays.items()},
        best_epoch=best.manifest.epoch,
    )


def runs_in(folder: Path) -> list[Path]:
    """List the run folders, without the link ``latest``."""
    runs = folder / "runs"
    paths = sorted(runs.iterdir()) if runs.exists() else []
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def make_folder(runs_dir: Path) -> str:
    """Begin a run as a start does, without training, and return the name of its folder."""
    run = RunDirectory.create(runs_dir, "same")
    run.config.touch()
    run.make_latest()
    with run.locked():
        return run.path.name


def epochs_printed(stdout: str) -> list[int]:
    return [int(number) for number in re.findall(r"^epoch (\d+)/", stdout, re.MULTILINE)]


def resume_or_start(processes: Processes, folder: Path, arguments, **trouble) -> Finished:
    """Go on with what a stopped process left; where it left no run, start one."""
    runs = runs_in(folder)
    if runs:
        finished = processes.run(folder, "resume", runs[-1], **trouble)
        if finished.code != 4 or "is no run folder" not in finished.stderr:
            return finished
        # Stopped between the folder and its config.toml, before anything was printed or trained.
        assert list(runs[-1].rglob("*.npz")) == []
        shutil.rmtree(runs[-1])
    return processes.run(folder, *arguments, **trouble)


def strike(
    processes: Processes, folder: Path, fault: str, at: int, expected: Result, *, resume=True
) -> None:
    """Let what happens next in a folder go wrong at one operation, then hold that nothing is lost.

    What happens next is a new run, or the resume of one that is there. In the end it is resumed and
    comes to what is expected, or, without ``resume``, it is held that it could be.
    """
    struck = resume_or_start(processes, folder, SHORT, fault=fault, at=at)
    where = f"{fault} at operation {at}, {struck.operations[at - 1]}"
    refused = fault in REFUSALS
    assert struck.code in ((0, 5) if refused else (CRASHED,)), f"{where}: {struck.stderr}"
    assert "Traceback" not in struck.stderr, f"{where}: {struck.stderr}"
    if refused:
        assert not list(folder.rglob("*.tmp")), f"{where} left a temporary file"
        if struck.code == 5:
            lines = struck.stderr.splitlines()
            assert [line.split(":")[0] for line in lines[-2:]] == ["error", "hint"], struck.stderr
            assert os.strerror(REFUSALS[fault]) in lines[-2], where
            last = epochs_printed(struck.stdout)[-1:]
            safe = f"epoch {last[0]}" if last else "no epoch is done"
            # It may be one further: kept, and not yet printed.
            further = f"epoch {last[0] + 1 if last else 0} is safe"
            if "runs/latest" not in lines[-2] and runs_in(folder):
                assert safe in lines[-1] or further in lines[-1], f"{where}: {lines[-1]}"
    if not resume:
        for run in runs_in(folder):
            assert list(setup.check(RunDirectory.find(run), config.resolve({}))), where
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
    """Kill runs, a number of times at random moments; return how many were finished.

    A killed one is resumed, and each that is finished is held to the result of an unbroken run.
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


def flip(path: Path, flips: int, cuts: int, seed: int) -> None:
    """Damage a checkpoint, a number of times each in its own way, and hold that all is found."""
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
    """Put random bytes in the place of a run's files, and hold that every command says so."""
    dice = random.Random(seed)
    names = ("config.toml", "metrics.jsonl", "events.jsonl", "checkpoints/epoch-000002.npz")
    commands = (["plot"], ["resume"], ["resume", "--check"], ["evaluate", "--checkpoint=last"])
    for number in range(count):
        run = folder / f"fuzzed {number}" / "runs" / "run"
        (original,) = runs_in(folder)
        shutil.copytree(original, run)
        for name in dice.sample(names, dice.choice((1, 1, 2, 4))):
            path = run / name
            noise = dice.randbytes(dice.choice((0, 1, 10, 1000)))
            content = path.read_bytes()
            keep = dice.choice((0, dice.randrange(len(content)), len(content)))
            path.write_bytes(content[:keep] + noise)
        for command in (*commands, ["runs"]):
            given: list[object] = [*command]
            if command != ["runs"]:
                given.insert(1, run)
            finished = processes.run(run.parents[1], *given)
            where = f"{given} of fuzz {number}, seed {seed}: {finished.stderr}"
            assert finished.code in (0, 2, 4), where
            assert "Traceback" not in finished.stderr, where


def unbroken(processes: Processes, folder: Path, arguments) -> tuple[Result, list[str]]:
    """Return what a run comes to that nothing happens to, and its changes of the disk."""
    finished = processes.run(folder, *arguments)
    assert finished.code == 0, finished.stderr
    (run,) = runs_in(folder)
    return result_of(run), finished.operations


def serve() -> None:
    """Fork a process for each line of stdin, and answer with what became of it."""
    for name in ("rich.progress", "plateau_train.data.garments", "plateau_train.plots.panels"):
        importlib.import_module(name)
    for line in sys.stdin:
        task = json.loads(line)
        folder = Path(task["folder"])
        scratch = folder.with_name(f"{folder.name}-processes")
        places = {}
        for number, arguments in enumerate(task["commands"]):
            place = scratch / f"{number}"
            place.mkdir(parents=True)
            for name in FILES:  # a child that is killed at once would leave none
                (place / name).touch()
            child = os.fork()
            if child == 0:
                _become(task, arguments, place)
            places[child] = place
        started = time.monotonic()
        if task["kill_after"] is not None:
            time.sleep(task["kill_after"])
            for child in places:
                os.kill(child, signal.SIGKILL)
        answers = {}
        while len(answers) < len(places):
            child, status = os.wait()
            out, err, operations = (
                (places[child] / name).read_text(errors="replace") for name in FILES
            )
            code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - started
            answers[child] = Finished(code, out, err, operations.split(), seconds)._asdict()
        shutil.rmtree(scratch)
        print(json.dumps([answers[child] for child in places]), flush=True)


def _become(task, arguments, place) -> None:
    """Turn a forked process into one that runs the command, and never return."""
    code = 1
    signal.alarm(120)  # a process that does not end is no reason to wait for ever
    try:
        for descriptor, name in enumerate(FILES[:2], start=1):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["plateau-train", *arguments]
        os.chdir(task["folder"])
        log = (place / FILES[2]).open("w")
        from matplotlib.figure import Figure

        from plateau_train.__main__ import main
        from plateau_train.plots import panels
        from plateau_train.run import storage

        panels.draw_run = lambda *_: Figure(figsize=(1, 1))  # as many files, in a tenth of the time
        storage.os = FaultyOs(task["fault"], task["at"], log)  # pyright: ignore
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
