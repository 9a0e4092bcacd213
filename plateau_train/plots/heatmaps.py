"""Pictures of matrices: a confusion matrix, and a metric over a grid of settings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int32
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from plateau_train.plots import Grid
from plateau_train.plots.style import BLACK, COLOR_BAR, ORANGE, WHITE, Look, Theme

# The largest numbers of classes with counts in the cells, and with names along the axes.
MOST_NUMBERED, MOST_NAMED = 25, 120


def draw_confusion(
    confusion: Int32[np.ndarray, "classes classes"],
    class_names: Sequence[str],
    heading: str,
    theme: Theme,
) -> Figure:
    """Draw how often each class, a row each, is predicted as each class, a column each.

    The color is the share of the images of a row, on a scale that shows small shares too. The
    numbers are images, and are left out where they could not be read.
    """
    num_classes = len(class_names)
    is_numbered = num_classes <= MOST_NUMBERED
    # The sides of the matrix in inches, and the factor on all font sizes.
    side = np.clip(0.62 * num_classes, 3.4, 3.1 + 0.31 * num_classes)
    side = side if is_numbered else np.clip(0.13 * num_classes, 8, 13)
    figure = theme.new_figure(side + 3, side + 1.8)
    (panel,) = theme.add_panels(figure, 1, 1)
    side = min(figure.get_figwidth() - 3, figure.get_figheight() - 1.8)
    enlarged = 1 if theme.has_fixed_size else max(1, side / 8)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(0.5, 0, 1)
    image = panel.imshow(shares, cmap=theme.color_map, norm=norm)
    if is_numbered:
        texts = [f"{count:,}" if count else "" for count in confusion.flat]
        _write_cells(panel, image, texts, theme, fontsize=min(16, 18 * side / num_classes))
    if num_classes <= MOST_NAMED:
        fontsize = theme.tick if is_numbered else 60 * side / num_classes
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in class_names]
        look: Look = {"fontsize": fontsize, "parse_math": False}
        panel.set_yticks(range(num_classes), names, **look)
        slant: Look = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        look |= slant if is_numbered else {"rotation": 90}
        panel.set_xticks(range(num_classes), names, **look)
    bar = figure.colorbar(image, ax=panel, shrink=0.8, **COLOR_BAR)
    bar.set_label("share of the true class", fontsize=theme.tick * enlarged)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.ax.tick_params(labelsize=0.9 * theme.tick * enlarged)
    _finish(figure, heading, "predicted class", "true class", theme, enlarged)
    return figure


def draw_heat_map(grid: Grid, heading: str, theme: Theme) -> Figure:
    """Draw a metric over two settings: darker is better, and the best has an orange frame.

    On a dark background lighter is better. A cell with diverged seeds is hatched and shows their
    number. At least one mean is not NaN.
    """
    num_rows, num_columns = grid.means.shape
    width, height = np.clip(16 / num_columns, 0.75, 1.4), np.clip(10 / num_rows, 0.5, 0.8)
    figure = theme.new_figure(width * num_columns + 3.2, height * num_rows + 1.9)
    (panel,) = theme.add_panels(figure, 1, 1)
    sign = -1 if grid.metric.endswith("loss") else 1
    goodness = sign * grid.means
    norm, extend = _color_scale(goodness, sign)
    best = np.unravel_index(np.nanargmax(goodness), goodness.shape)
    _frame(panel, *best, linewidth=4, edgecolor=ORANGE, zorder=3, clip_on=False)
    cmap = colormaps[theme.color_map]
    cmap = cmap if sign > 0 else cmap.reversed()
    image = panel.imshow(grid.means, cmap=cmap, norm=norm, aspect="auto")
    texts = []
    for cell, mean in np.ndenumerate(grid.means):
        std, num_diverged = grid.stds[cell], grid.num_diverged[cell]
        lines = [] if np.isnan(mean) else [f"{mean:.4f}"]
        lines += [] if np.isnan(std) else [f"\N{PLUS-MINUS SIGN} {std:.4f}"]
        if num_diverged:
            lines.append(f"{num_diverged} diverged" if lines else "diverged")
            _frame(panel, *cell, hatch="//", linewidth=0, edgecolor="#BBBBBB")
        texts.append("\n".join(lines))
    width = (figure.get_figwidth() - 3.2) / num_columns
    height = (figure.get_figheight() - 1.9) / num_rows
    fontsize = max(4, min(theme.tick, 9.5 * width, 22 * height))
    _write_cells(panel, image, texts, theme, fontsize=fontsize)
    look: Look = {"fontsize": theme.tick, "parse_math": False}
    panel.set_yticks(range(num_rows), grid.rows, **look)
    panel.set_xticks(range(num_columns), grid.columns, **look)
    bar = figure.colorbar(image, ax=panel, extend=extend, **COLOR_BAR)
    bar.set_label(grid.metric, fontsize=theme.tick)
    bar.ax.tick_params(labelsize=0.9 * theme.tick)
    across, down = (
        flag.removeprefix("--").replace("-", " ") for flag in (grid.column_flag, grid.row_flag)
    )
    _finish(figure, heading, across, down, theme)
    return figure


def _write_cells(
    panel: Axes, image: AxesImage, texts: Sequence[str], theme: Theme, *, fontsize: float
) -> None:
    """Write into the cells, row by row, in black or white: whichever can be read on the color."""
    values = np.ma.masked_invalid(np.asarray(image.get_array()))
    for (place, value), text in zip(np.ndenumerate(values), texts, strict=True):
        if not text:
            continue
        color = theme.ink
        if not np.ma.getmaskarray(values)[place]:
            red, green, blue, _ = image.to_rgba(value)
            color = WHITE if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else BLACK
        row, column = place
        look: Look = {"color": color, "fontsize": fontsize, "ha": "center", "va": "center"}
        panel.text(column, row, text, **look)


def _frame(panel: Axes, row: Any, column: Any, **look: Any) -> None:
    panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, **look))


def _finish(
    figure: Figure, heading: str, across: str, down: str, theme: Theme, enlarged: float = 1
) -> None:
    """Name the axes, and leave out the frames of matrix and color bar."""
    panel, bar = figure.axes
    panel.set_xlabel(across, fontsize=theme.label * enlarged)
    panel.set_ylabel(down, fontsize=theme.label * enlarged)
    panel.tick_params(length=0)
    for axes in (panel, bar):
        axes.spines[:].set_visible(False)
    theme.write_heading(figure, heading, theme.panel_title * enlarged)


def _color_scale(goodness: Float[np.ndarray, "rows columns"], sign: int) -> tuple[Normalize, str]:
    """Return the range of the colors, and at which end values are beyond it.

    All cells are inside, but for those that are far from the others: one run that learned nothing
    would make all other cells look equal.
    """
    best, worst = np.nanmax(goodness), np.nanmin(goodness)
    usual = best - np.nanmedian(goodness)
    least = max(worst, best - 4 * usual) if usual > 0 else worst
    if least == best:  # all cells are equal, and get a color of the middle
        margin = 0.01 * abs(best) or 0.01
        return Normalize(*sorted((sign * best - margin, sign * best + margin))), "neither"
    extend = "neither" if least == worst else "min" if sign > 0 else "max"
    return Normalize(*sorted((sign * least, sign * best))), extend
