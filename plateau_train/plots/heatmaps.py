"""Pictures of matrices: what is taken for what, and how good each cell of a grid of settings is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

# So many classes are written into the cells of a confusion matrix, and along its sides.
MOST_NUMBERED, MOST_NAMED = 25, 120


def draw_confusion(
    confusion: Int32[np.ndarray, "classes classes"], class_names: Sequence[str], heading: str
) -> Figure:
    """Draw how often each class, a row each, is taken for each class, a column each.

    The colour is the share of the row's images, on a scale that shows small shares too. The
    numbers are images, and stand where they can be read.
    """
    num_classes = len(class_names)
    numbered = num_classes <= MOST_NUMBERED
    # The sides of the matrix in inches, and how much larger than usual its texts are to be.
    side = np.clip(0.62 * num_classes, 3.4, 3.1 + 0.31 * num_classes)
    side = side if numbered else np.clip(0.13 * num_classes, 8, 13)
    enlarged = max(1, side / 8)
    figure = Figure(figsize=(side + 3, side + 1.8), layout="constrained")
    panel = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(0.5, 0, 1)
    image = panel.imshow(shares, cmap="Blues", norm=norm)
    if numbered:
        fontsize = min(16, 18 * side / num_classes)
        for (row, column), count in np.ndenumerate(confusion):
            if count > 0:
                panel.text(
                    column, row, f"{count:,}", ha="center", va="center", fontsize=fontsize,
                    color="white" if norm(shares[row, column]) > 0.6 else "black",
                )  # fmt: skip
    if num_classes <= MOST_NAMED:
        fontsize = 11 if numbered else 60 * side / num_classes
        _name_classes(panel, class_names, fontsize=fontsize)
    panel.set_xlabel("taken for", fontsize=12 * enlarged)
    panel.set_ylabel("true class", fontsize=12 * enlarged)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panel, shrink=0.8, fraction=0.05, pad=0.02, aspect=25)
    bar.set_label("share of the true class", fontsize=11 * enlarged)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.ax.tick_params(labelsize=10 * enlarged)
    bar.outline.set_visible(False)
    # Smaller for a run with a very long name.
    longest = max(map(len, heading.splitlines()))
    fontsize = min(13 * enlarged, 72 * (side + 3) / (0.6 * longest))
    figure.suptitle(heading, fontsize=fontsize, parse_math=False)
    return figure


def _name_classes(panel: Axes, class_names: Sequence[str], *, fontsize: float) -> None:
    """Write the names of the classes along both axes; one of a data set's may be very long."""
    names = [
        name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}" for name in class_names
    ]
    many = len(names) > MOST_NUMBERED
    places = range(len(names))
    panel.set_yticks(places, names, fontsize=fontsize, parse_math=False)
    panel.set_xticks(
        places, names, fontsize=fontsize, parse_math=False, rotation=90 if many else 40,
        ha="center" if many else "right", rotation_mode="default" if many else "anchor",
    )  # fmt: skip


class Grid(NamedTuple):
    """How good a metric is where two knobs vary, a row and a column for each of their values.

    ``means`` are over seeds, NaN where no seed has finished; ``spreads`` are one standard
    deviation, NaN where there is one seed; ``diverged`` counts the seeds that did not finish.
    """

    row_flag: str
    rows: Sequence[str]
    column_flag: str
    columns: Sequence[str]
    means: Float[np.ndarray, "rows columns"]
    spreads: Float[np.ndarray, "rows columns"]
    diverged: Int[np.ndarray, "rows columns"]
    metric: str  # such as "test accuracy"; of a loss the lowest is the best


def draw_heat_map(grid: Grid, heading: str) -> Figure:
    """Draw a grid of settings: the darker the better, the best one framed in orange.

    A setting of which seeds diverged is hatched, and says so.
    """
    num_rows, num_columns = grid.means.shape
    width, height = np.clip(16 / num_columns, 0.75, 1.4), np.clip(10 / num_rows, 0.5, 0.8)
    figure = Figure(
        figsize=(width * num_columns + 3.2, height * num_rows + 1.9), layout="constrained"
    )
    panel = figure.add_subplot()
    sign = -1 if grid.metric.endswith("loss") else 1
    goodness = sign * grid.means
    finished = ~np.isnan(goodness)
    norm, extend = _color_scale(goodness, sign)
    if finished.any():
        row, column = np.unravel_index(np.nanargmax(goodness), goodness.shape)
        frame = {"linewidth": 4, "edgecolor": "#E69F00", "zorder": 3, "clip_on": False}
        panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, **frame))
    image = panel.imshow(
        grid.means, cmap="Blues" if sign > 0 else "Blues_r", norm=norm, aspect="auto"
    )
    fontsize = min(11, 9.5 * width)
    for place, mean in np.ndenumerate(grid.means):
        row, column = place
        lines = [f"{mean:.4f}"] if finished[place] else []
        if not math.isnan(grid.spreads[place]):
            lines.append(f"\N{PLUS-MINUS SIGN} {grid.spreads[place]:.4f}")
        if count := grid.diverged[place]:
            lines.append(f"{count} diverged" if lines else "diverged")
            hatching = {"hatch": "//", "linewidth": 0, "edgecolor": "#BBBBBB"}
            panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, **hatching))
        is_dark = finished[place] and (norm(mean) if sign > 0 else 1 - norm(mean)) > 0.6
        panel.text(
            column, row, "\n".join(lines), ha="center", va="center", fontsize=fontsize,
            color="white" if is_dark else "black",
        )  # fmt: skip
    panel.set_xticks(range(num_columns), grid.columns, fontsize=11, parse_math=False)
    panel.set_yticks(range(num_rows), grid.rows, fontsize=11, parse_math=False)
    panel.set_xlabel(grid.column_flag, fontsize=12)
    panel.set_ylabel(grid.row_flag, fontsize=12)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panel, fraction=0.05, pad=0.02, aspect=25, extend=extend)
    bar.set_label(grid.metric, fontsize=11)
    bar.outline.set_visible(False)
    longest = max(map(len, heading.splitlines()))
    fontsize = min(13, 72 * figure.get_figwidth() / (0.62 * longest))
    figure.suptitle(heading, fontsize=fontsize, parse_math=False)
    return figure


def _color_scale(goodness: Float[np.ndarray, "rows columns"], sign: int) -> tuple[Normalize, str]:
    """Choose the values between which the colours differ, and which end is cut off, if one is."""
    if np.isnan(goodness).all():
        return Normalize(0, 1), "neither"
    best, worst = np.nanmax(goodness), np.nanmin(goodness)
    # One setting that learns nothing would make all the others look the same.
    least = max(worst, best - 4 * (best - np.nanmedian(goodness)))
    cut = "neither" if least == worst else "min" if sign > 0 else "max"
    return Normalize(*sorted((sign * least, sign * best))), cut
