"""plateau-train plot: draw the panels of a run again."""

from pathlib import Path

from plateau_train.api.pictures import draw_run
from plateau_train.config import FigureOptions
from plateau_train.plots import check_format, place
from plateau_train.report.console import printable
from plateau_train.run.reader import Run


def print_plot(run: Path, output: Path | None, replica: int | None, options: FigureOptions) -> None:
    """Draw a run, and print the path of the picture."""
    print(printable(plot(run, output, replica, options)))


def plot(run: Path, output: Path | None, replica: int | None, options: FigureOptions) -> Path:
    """Draw all replicas of a run, or one as a run of its own; return the path of the picture.

    Raises ``ConfigError`` for a replica that the run does not have and for an unknown format.
    """
    if output is not None:
        check_format(output)
    opened = Run.open(run)
    picture = opened.directory.plot
    if replica is not None:
        picture = picture.with_name(f"plot-replica-{replica}.png")
    return place(picture, output, draw_run(opened, replica, options))
