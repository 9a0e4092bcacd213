"""The picture of a run."""

from typing import TYPE_CHECKING

from plateau_train import plots
from plateau_train.config import FigureOptions
from plateau_train.run.history import find_replica
from plateau_train.run.reader import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_run(run: Run, replica: int | None, options: FigureOptions) -> "Figure":
    """Draw all replicas of a run, or one as a run of its own.

    Raises ``ConfigError`` for a replica that the run does not have.
    """
    settings, histories = run.settings, run.histories
    if replica is not None:
        histories = [find_replica(histories, replica, run.directory)]
    return plots.draw_run(histories, settings, options)
