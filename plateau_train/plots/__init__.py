"""Figures: each ``draw_`` function returns one, and ``save`` writes it as PNG, SVG or PDF.

The modules of this folder import matplotlib, which takes a second; the functions here import them
when called, so that a command without a figure starts fast. Imports numerics, run, config and
errors.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from plateau_train.config import FigureOptions, Settings
from plateau_train.errors import ConfigError, StorageError
from plateau_train.run.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from plateau_train.numerics.replay import Row
    from plateau_train.plots.style import Theme
    from plateau_train.run.series import Series

FORMATS = ("png", "svg", "pdf")


class PlottedRun(NamedTuple):
    """A run to draw; one of several in a picture has a label, a color and a line style."""

    settings: Settings
    histories: Sequence[History]
    label: str = ""
    color: str = "black"
    linestyle: Any = "-"
    is_single: bool = False  # whether it is the only run of the figure


class Grid(NamedTuple):
    """A metric over two settings that vary: a row and a column for each of their values.

    Mean and sample standard deviation are over seeds, and NaN where there are too few of them.
    """

    row_flag: str
    rows: Sequence[str]
    column_flag: str
    columns: Sequence[str]
    means: Float[np.ndarray, "rows columns"]
    stds: Float[np.ndarray, "rows columns"]
    num_diverged: Int[np.ndarray, "rows columns"]  # seeds that did not finish
    metric: str  # such as "test accuracy"; the lowest loss or the highest accuracy is best


def check_format(path: Path) -> str:
    """Return the format of a picture by its suffix; raises ``ConfigError`` for an unknown one."""
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        hint = f"end the name in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}"
        raise ConfigError(f"a plot cannot be written as {path.name}", hint=hint)
    return suffix


def draw_run(
    histories: Sequence[History], settings: Settings, options: FigureOptions | None = None
) -> "Figure":
    """Draw the panels of a run over its epochs; the records begin with epoch 0, untrained.

    Raises ``ConfigError`` for a panel that the run has no values for.
    """
    with _drawing(options) as theme:
        return _module("panels").draw_run(histories, settings, theme)


def draw_comparison(
    runs: Sequence[PlottedRun], heading: str, options: FigureOptions | None = None
) -> "Figure":
    """Draw the panels with a curve for each run; raises as ``draw_run``."""
    with _drawing(options) as theme:
        return _module("panels").draw_comparison(runs, heading, theme)


def draw_replay(
    series: "Series",
    rules: "Mapping[str, Sequence[Row]]",
    options: FigureOptions | None = None,
    *,
    rule: str,
    reasons: Sequence[str],
    ending: str,
    change: "Row | None",
) -> "Figure":
    """Draw the values of a replay above the scale of each rule."""
    with _drawing(options, num_panels=2) as theme:
        return _module("replay").draw_replay(
            series, rules, theme, rule=rule, reasons=reasons, ending=ending, change=change
        )


def draw_confusion(
    confusion: np.ndarray,
    class_names: Sequence[str],
    heading: str,
    options: FigureOptions | None = None,
) -> "Figure":
    """Draw how often each class, a row each, is predicted as each class, a column each."""
    with _drawing(options, num_panels=1) as theme:
        return _module("heatmaps").draw_confusion(confusion, class_names, heading, theme)


def draw_heat_map(grid: Grid, heading: str, options: FigureOptions | None = None) -> "Figure":
    """Draw a metric over two settings that vary."""
    with _drawing(options, num_panels=1) as theme:
        return _module("heatmaps").draw_heat_map(grid, heading, theme)


def save(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of the path.

    Equal figures give equal files. Raises ``ConfigError`` for another suffix, and ``StorageError``
    if the file cannot be written.
    """
    kind = check_format(path)
    with matplotlib_defaults():
        _module("style").save_figure(path, kind, figure)


def save_run_plot(path: Path, histories: Sequence[History], settings: Settings) -> None:
    """Draw a run and write it."""
    check_format(path)
    save(path, draw_run(histories, settings))


def place(path: Path, output: Path | None, figure: "Figure") -> Path:
    """Save a figure to ``output``, or to ``path`` in a run if that is None; return its path.

    If the run cannot be written to, the figure is saved in the working directory, under the name
    of the run. Raises ``StorageError`` if that or ``output`` cannot be written.
    """
    if output is not None:
        save(output, figure)
        return output
    try:
        save(path, figure)
    except StorageError:
        path = Path(f"{path.parent.resolve().name}-{path.name}")
        save(path, figure)
    return path


def _module(name: str) -> Any:
    return import_module(f"plateau_train.plots.{name}")


@contextlib.contextmanager
def _drawing(options: FigureOptions | None, *, num_panels: int | None = None) -> "Iterator[Theme]":
    """Draw with the theme of some options; an error of the system is a ``StorageError``.

    The panels are those of the options, or as many as are given.
    """
    options = options or FigureOptions()
    try:
        with matplotlib_defaults():
            theme = _module("style").Theme.of(options, num_panels or len(options.panels))
            with theme.applied():
                yield theme
    except OSError as error:  # such as no folder for temporary files, while fonts are searched
        reason = error.strerror or error
        raise StorageError(
            f"the figure cannot be drawn: {reason}", hint="free disk space"
        ) from error


@contextlib.contextmanager
def matplotlib_defaults() -> Iterator[None]:
    """Draw with the defaults of matplotlib, whatever the user has configured for it.

    Warnings of matplotlib about a configuration are not logged: it does not affect the pictures.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        matplotlib = _import_matplotlib()
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            yield
    finally:
        log.setLevel(level)


def _import_matplotlib() -> Any:
    """Import matplotlib, also where its configuration is unusable.

    matplotlib reads it while it is imported, and an unknown back end or an unreadable matplotlibrc
    ends the import. Outside of our pictures a usable configuration applies again.
    """
    if matplotlib := sys.modules.get("matplotlib"):
        return matplotlib
    neutral = {"MPLBACKEND": "", "MATPLOTLIBRC": os.devnull}
    before = {name: os.environ.get(name) for name in neutral}
    os.environ |= neutral
    try:
        matplotlib: Any = import_module("matplotlib")
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    with contextlib.suppress(ValueError, OSError):
        # As its import does: all that can be used, without starting the back end.
        params = matplotlib.rc_params_from_file(matplotlib.matplotlib_fname())
        for current in (matplotlib.rcParams, matplotlib.rcParamsOrig):
            dict.update(current, params)
        if backend := os.environ.get("MPLBACKEND"):
            matplotlib.rcParams["backend"] = backend
    return matplotlib
