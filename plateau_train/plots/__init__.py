"""Pictures: each ``save_`` function draws one and writes it as PNG, SVG or PDF.

The modules of this folder import matplotlib, which takes a second; the functions here import them
when called, so that a command without a picture starts fast. Imports run, config and errors.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from plateau_train.config import Settings
from plateau_train.errors import ConfigError, StorageError
from plateau_train.run import storage
from plateau_train.run.history import History

FORMATS = ("png", "svg", "pdf")


class PlottedRun(NamedTuple):
    """A run to draw; one of several in a picture has a label, a color and a line style."""

    settings: Settings
    histories: Sequence[History]
    label: str = ""
    color: str = "black"
    linestyle: Any = "-"
    is_single: bool = False  # whether it is the only run of the picture


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


def place(path: Path, output: Path | None, save: Callable[[Path], None]) -> Path:
    """Save a picture to ``output``, or to ``path`` in a run if that is None; return its path.

    If the run cannot be written to, the picture is saved in the working directory, under the name
    of the run. Raises ``StorageError`` if that or ``output`` cannot be written.
    """
    if output is not None:
        save(output)
        return output
    try:
        save(path)
    except StorageError:
        path = Path(f"{path.parent.resolve().name}-{path.name}")
        save(path)
    return path


def _saver(module: str, name: str) -> Callable[..., None]:
    """Return a function that draws with a function of a module, and writes to a path.

    Its first argument is the path, the others are those of the function that draws.
    """

    def save(path: Path, *arguments: Any, **options: Any) -> None:
        check_format(path)
        with storage.as_storage_error(path), _matplotlib_defaults():
            draw = getattr(import_module(f"plateau_train.plots.{module}"), name)
            figure = draw(*arguments, **options)
            import_module("plateau_train.plots.style").save_figure(path, figure)

    return save


@contextlib.contextmanager
def _matplotlib_defaults() -> Iterator[None]:
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
    before = dict(os.environ)
    os.environ |= {"MPLBACKEND": "", "MATPLOTLIBRC": os.devnull}
    try:
        matplotlib = import_module("matplotlib")
    finally:
        os.environ.clear()
        os.environ |= before
    with contextlib.suppress(ValueError, OSError):
        matplotlib.rc_file(matplotlib.matplotlib_fname())
        if backend := os.environ.get("MPLBACKEND"):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


save_run_plot = _saver("panels", "draw_run")
save_comparison = _saver("panels", "draw_comparison")
save_confusion = _saver("heatmaps", "draw_confusion")
save_heat_map = _saver("heatmaps", "draw_heat_map")
save_replay = _saver("replay", "draw_replay")
