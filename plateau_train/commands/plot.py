"""plateau-train plot: draw a run again."""

from pathlib import Path

from plateau_train.config import FigureOptions
from plateau_train.plots import check_format, draw_run, place
from plateau_train.report.console import printable
from plateau_train.run.history import find_replica
from plateau_train.run.reader import Run


def print_plot(run: Path, output: Path | None, replica: int | None, figure: FigureOptions) -> None:
    """Draw a run, and print the path of the picture."""
    print(printable(plot(run, output, replica, figure)))


def plot(
    run: Path, output: Path | None, replica: int | None, figure: FigureOptions | None = None
) -> Path:
    """Draw all replicas of a run, or one as a run of its own; return the path of the picture.

    Raises ``ConfigError`` for a replica or a panel that the run does not have and for an unknown
    format.
    """
    if output is not None:
        check_format(output)
    opened = Run.open(run)
    settings, histories, picture = opened.settings, opened.histories, opened.directory.plot
    if replica is not None:
        histories = [find_replica(histories, replica, opened.directory)]
        picture = picture.with_name(f"plot-replica-{replica}.png")
    return place(picture, output, draw_run(histories, settings, figure))
