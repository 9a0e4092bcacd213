"""Figures in Python: drawn with options, and saved where a path is given."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plateau_train import config, plots
from plateau_train.api.options import PathLike, as_path
from plateau_train.config import FIGURE_OPTIONS, FigureOptions, Setting
from plateau_train.run.history import find_replica
from plateau_train.run.reader import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[FigureOptions], "Figure"]


def draw_into(
    path: PathLike | None,
    draw: Draw,
    options: Mapping[str, Any],
    known: Sequence[Setting] = FIGURE_OPTIONS,
) -> "Figure":
    """Draw with keyword arguments as options, and also save to ``path`` if given.

    Raises ``ConfigError`` for options that are not known and for an unknown format, before anything
    is drawn.
    """
    place = None if path is None else as_path(path)
    if place is not None:
        plots.check_format(place)
    figure = draw(config.figure_options(options, known))
    if place is not None:
        plots.save(place, figure)
    return figure


def draw_run(run: Run, replica: int | None, options: FigureOptions) -> "Figure":
    """Draw all replicas of a run, or one as a run of its own.

    Raises ``ConfigError`` for a replica that the run does not have.
    """
    settings, histories = run.settings, run.histories
    if replica is not None:
        histories = [find_replica(histories, replica, run.directory)]
    return plots.draw_run(histories, settings, options)
