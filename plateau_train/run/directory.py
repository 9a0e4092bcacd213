"""The run folder: its name, its files, and the link ``latest`` beside it."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from plateau_train.errors import RunError, StorageError
from plateau_train.run import storage

LATEST = "latest"


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder. Its files are made by whoever writes them."""

    path: Path

    @classmethod
    def create(cls, runs_dir: Path, name: str) -> "RunDirectory":
        """Make a new folder, named by the time and ``name``; an existing one is never used.

        Raises ``StorageError`` where it cannot be made.
        """
        stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
        for number in range(1, 1000):
            path = runs_dir / (stem if number == 1 else f"{stem}-{number}")
            if storage.make_folder(path):
                return cls(path)
        raise StorageError(
            f"{runs_dir / stem} and 998 more with a number behind it exist",
            hint="give another --name or --runs-dir",
        )

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Find an existing run; raises ``RunError`` for a folder that is none."""
        run = cls(path)
        if not path.is_dir():
            raise RunError(
                f"{path} is no folder",
                hint="give a run folder, such as runs/latest; plateau-train makes one",
            )
        missing = [file.name for file in (run.config, run.metrics) if not file.is_file()]
        if missing:
            raise RunError(
                f"{path} is no run folder: it has no {' and no '.join(missing)}",
                hint="give a run folder, such as runs/latest",
            )
        return run

    def make_latest(self) -> None:
        """Point ``latest`` at this run: a convenience that nothing depends on."""
        storage.point_link(self.path.parent / LATEST, self.path.name)

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def timings(self) -> Path:
        return self.path / "timings.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plot(self) -> Path:
        return self.path / "plot.png"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"
