"""Draw a run that a signal stopped, in a separate process, because the program itself must end."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

from plateau_train.plots import save_run_plot
from plateau_train.process.children import command_of
from plateau_train.run import checkpoint, storage
from plateau_train.run.reader import Run


def start(folder: Path) -> None:
    """Start a process that draws a run, and do not wait for it."""
    with contextlib.suppress(OSError):  # plateau-train plot draws it as well
        subprocess.Popen(
            command_of(__name__, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # closing the terminal does not end it
        )


def draw(folder: Path) -> None:
    """Draw a run, unless it is continued meanwhile: the picture would be outdated."""
    run = Run.open(folder)
    checkpoints, picture = run.directory.checkpoints, run.directory.plot
    last_epoch = checkpoint.last_epoch(checkpoints)
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / picture.name
        save_run_plot(drawn, run.histories, run.settings)
        if checkpoint.last_epoch(checkpoints) == last_epoch:
            storage.write_bytes(picture, drawn.read_bytes())


def main(folder: str) -> None:
    """Draw the run of a folder: the program of the separate process."""
    draw(Path(folder))
