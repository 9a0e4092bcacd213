"""Plots: each function draws one picture and saves it. Imports run, config and errors."""
# A stand-in with the names of the facade that is being written; it imports matplotlib late.

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plateau_train.config import Settings
from plateau_train.run.records import History


class PlottedRun(NamedTuple):
    settings: Settings
    histories: Sequence[History]
    label: str = ""


class Grid(NamedTuple):
    row_flag: str
    rows: Sequence[str]
    column_flag: str
    columns: Sequence[str]
    means: Any
    stds: Any
    num_diverged: Any
    metric: str


def check_format(path: Path) -> str:
    from plateau_train.plots import panels

    return panels.picture_format(path)


def place(path: Path, output: Path | None, save: Callable[[Path], None]) -> Path:
    from plateau_train.errors import StorageError

    if output is not None:
        save(output)
        return output
    try:
        save(path)
    except StorageError:
        path = Path(f"{path.parent.resolve().name}-{path.name}")
        save(path)
    return path


def save_comparison(path: Path, runs: Sequence[PlottedRun], heading: str) -> None:
    from plateau_train.plots import panels, scale

    panels.save_figure(panels.draw_together([scale.Drawn(*run) for run in runs], heading), path)


def save_confusion(path: Path, confusion: Any, class_names: Sequence[str], heading: str) -> None:
    from plateau_train.plots import heatmaps, panels

    panels.save_figure(heatmaps.draw_confusion(confusion, class_names, heading), path)


def save_heat_map(path: Path, grid: Grid, heading: str) -> None:
    from plateau_train.plots import heatmaps, panels

    panels.save_figure(heatmaps.draw_heat_map(heatmaps.Grid(*grid), heading), path)
