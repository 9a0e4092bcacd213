"""The run folder: its name, its files, its lock, and the link ``latest`` beside it."""

import contextlib
import datetime
import fcntl
import itertools
import logging
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from plateau_train import config
from plateau_train.config import Resolved
from plateau_train.config.files import read_file
from plateau_train.errors import (
    PROGRAM,
    BusyRunError,
    ConfigError,
    ForeignConfigError,
    ForeignRunError,
    RunError,
    StorageError,
)
from plateau_train.run import storage
from plateau_train.run.records import describe_problem

log = logging.getLogger("plateau_train")

LATEST = "latest"
SWEEP = "sweep.json"  # the plan of a sweep, in its folder

# The hint for a path that is not a run folder.
FIND_HINT = f"give a run folder, such as runs/latest; {PROGRAM} runs lists them"

Model = TypeVar("Model", bound=BaseModel)

# A process that locks a run waits this long for one that only checks whether it is locked.
LOCK_SECONDS = 0.1


def locate(path: Path | None, runs_dir: Path) -> Path:
    """Return the folder of a run or sweep: a path, or a name in ``runs_dir``; else the latest run.

    Logs which one the latest is. Raises ``RunError`` where there is no latest one.
    """
    runs_dir = config.expand_home(runs_dir)
    if path is not None:
        return path if os.path.lexists(path) or not (runs_dir / path).exists() else runs_dir / path
    latest = runs_dir / LATEST
    if not latest.is_dir():
        hint = f"{PROGRAM} trains a run; --runs-dir names another folder of runs"
        raise RunError(f"there is no folder {latest}", hint=hint)
    run = RunDirectory.find(latest)
    log.info("%s is the latest run", run)
    return run.path


def is_sweep(path: Path) -> bool:
    """Return whether a folder is a sweep."""
    with contextlib.suppress(OSError):
        return (path / SWEEP).is_file()
    return False


def list_runs(sweep: Path) -> list[Path]:
    """Return the folders of the runs of a sweep that have metrics, by name."""
    metrics = sweep.glob("*/metrics.jsonl")
    return sorted(file.parent for file in metrics if file.parent.name != LATEST)


def read_json(path: Path, model: type[Model]) -> Model:
    """Read a JSON file; raises ``RunError`` if it is missing or damaged."""
    try:
        return model.model_validate_json(read_file(path))
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        reason = describe_problem(error)
    raise RunError(f"{path} cannot be used: {reason}", hint="restore the file from a copy")


class _File:
    """The path of a file in a run's folder, as an attribute of the folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "RunDirectory", _: type) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run. Its files are made when they are first written."""

    path: Path

    config = _File("config.toml")
    environment = _File("environment.json")
    model = _File("model.py")  # a copy of the code of a user's network, executed only if named
    metrics = _File("metrics.jsonl")
    events = _File("events.jsonl")
    timings = _File("timings.jsonl")
    checkpoints = _File("checkpoints")
    plot = _File("plot.png")
    confusion = _File("confusion.png")
    summary = _File("summary.json")

    @classmethod
    def create(cls, runs_dir: Path, name: str) -> "RunDirectory":
        """Make a new folder, named by the time and ``name``; an existing one is never used.

        Raises ``StorageError`` where it cannot be made.
        """
        stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
        path, numbers = runs_dir / stem, itertools.count(2)
        while not storage.make_folder(path):
            path = runs_dir / f"{stem}-{next(numbers)}"
        return cls(path)

    @classmethod
    def find(cls, path: Path) -> "RunDirectory":
        """Find a folder; a link such as ``latest``, which may move on, is followed now.

        Raises ``RunError`` where there is none.
        """
        try:
            if path.is_symlink():
                path = path.parent / os.readlink(path)
            is_folder = path.is_dir()
            if is_folder:
                os.listdir(path / ".")  # which takes the permission to list and to open
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}", hint=FIND_HINT) from error
        if not is_folder:
            raise RunError(f"there is no folder {path}", hint=FIND_HINT)
        return cls(path if path.name else path.resolve())  # latest points at it by its name

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Find a run with its metrics; raises ``RunError`` for a folder that is not one."""
        run = cls.find(path)
        run.refuse_sweep()
        missing = [file.name for file in (run.config, run.metrics) if not file.is_file()]
        if missing:
            raise RunError(
                f"{path} is not a run folder: it has no {' and no '.join(missing)}",
                hint=FIND_HINT,
            )
        return run

    def refuse_sweep(self) -> None:
        """Raise ``RunError`` for the folder of a sweep."""
        if is_sweep(self.path):
            raise RunError(
                f"{self} is a sweep, and this command takes one run",
                hint=f"{PROGRAM} runs {self} lists its runs, {PROGRAM} compare {self} compares "
                "them",
            )

    def settings(self) -> Resolved:
        """Read ``config.toml``; raises ``RunError`` if it is damaged or of another version."""
        try:
            return config.resolve_whole(self.config)
        except ForeignConfigError as error:
            raise ForeignRunError(*error.problems, hint=error.hint) from error
        except ConfigError as error:
            raise RunError(*error.problems, hint="restore the file from a copy") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run until the block or the process ends.

        Raises ``BusyRunError`` where another process has locked it, and as ``require``. On a file
        system without locks, this does nothing.
        """
        self.require()
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            end = time.monotonic() + LOCK_SECONDS
            while not _lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > end:
                    raise BusyRunError(
                        f"{self.path} is locked by another process, which trains it",
                        hint="wait until that process ends, or stop it first",
                    )
                time.sleep(LOCK_SECONDS / 10)
            yield
        finally:
            os.close(descriptor)

    def require(self) -> None:
        """Raise ``RunError`` where the folder was removed."""
        if not self.path.exists():
            raise RunError(f"{self.path} does not exist any more", hint=FIND_HINT)

    def is_locked(self) -> bool:
        """Return whether another process has locked this run."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return not _lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def make_latest(self) -> None:
        """Point ``latest`` at this run: a convenience that nothing depends on.

        Raises ``StorageError`` where it cannot be made, or is a file or link of the user.
        """
        link = self.path.parent / LATEST
        points_at_run = link.is_symlink() and (
            not link.exists() or RunDirectory(link).config.is_file()
        )
        if os.path.lexists(link) and not points_at_run:
            raise StorageError(
                f"{link} is not changed: it is not a link to a run",
                hint="rename it to get a link to the latest run",
            )
        storage.point_link(link, self.path.name)

    def __str__(self) -> str:
        """Return the folder as it is typed in a shell."""
        text = str(self.path)
        return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _lock(descriptor: int, kind: int) -> bool:
    """Lock until the descriptor is closed; return False where another process has the lock."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True
