"""What the pictures share: colors, font sizes, axes, curves, and how a file is written."""

import io
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from plateau_train.plots import check_format
from plateau_train.run import storage

# The palette of Okabe and Ito, for color-blind readers; line styles differ as well.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, VERMILION, GREEN, BLACK, PURPLE, ORANGE, SKY_BLUE = RUN_COLORS
RUN_LINESTYLES = ("-", "--", "-.", (0, (1, 1)))
SPLIT_STYLES = {"train": (BLUE, "-"), "test": (VERMILION, "-"), "val": (GREEN, "--")}

# Font sizes in points: headings, titles and labels of panels, ticks and legends, ticks of insets,
# and reasons of drops and notes within a panel.
HEADING, TITLE, LABEL, TICK, SMALL_TICK, NOTE = 14, 13, 12, 11, 9, 8.5

Look = dict[str, Any]  # keyword arguments of matplotlib
DROP_LINE: Look = {"color": "#999999", "linewidth": 0.8, "linestyle": ":", "zorder": 0}
REPLICA_LINE: Look = {"linewidth": 0.6, "alpha": 0.35}
BEST_MARKER: Look = {"marker": "o", "markersize": 6, "markeredgecolor": "white", "zorder": 4}
COLOR_BAR: Look = {"fraction": 0.05, "pad": 0.02, "aspect": 25}
ABOVE: Look = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}  # a legend covers no curve

MOST_LISTED = 12  # reasons of drops below a picture
LINE = 0.18  # inches that a line of text above or below the panels takes
LARGEST_SCALE = 1.5  # the upper limit of a logarithmic axis of the scale


class Curve(NamedTuple):
    """The center of a value over replicas, and the band around it."""

    epochs: Num[np.ndarray, " points"]
    center: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]
    replicas: Float[np.ndarray, "replicas points"]  # those that are drawn

    @classmethod
    def of(cls, epochs: ArrayLike, replicas: Sequence[Any], *, is_single: bool) -> "Curve":
        """Return the mean of replicas, each up to its end, and one standard deviation around it.

        Several replicas of a run that ``is_single`` are drawn as well.
        """
        values = np.array(list(zip_longest(*replicas, fillvalue=np.nan))).T
        counts, mean = np.isfinite(values).sum(axis=0), np.nanmean(values, axis=0)
        std = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.maximum(counts - 1, 1))
        drawn = values if is_single and len(values) > 1 else values[:0]
        return cls(np.array(epochs), mean, mean - std, mean + std, drawn)

    @classmethod
    def of_scales(cls, epochs: ArrayLike, replicas: Sequence[Any], *, is_single: bool) -> "Curve":
        """Return the geometric mean of scales, and the range from the lowest to the highest.

        The mean is 0 where the scale of a replica has underflowed to 0.
        """
        scales = np.array(replicas)
        low, high = scales.min(axis=0), scales.max(axis=0)
        with np.errstate(divide="ignore"):
            mean = np.exp2(np.log2(scales).mean(axis=0))
        drawn = scales if is_single and len(scales) > 1 else scales[:0]
        return cls(np.array(epochs), np.clip(mean, low, high), low, high, drawn)  # it is rounded

    def since(self, epoch: int) -> "Curve":
        """Leave out what is before an epoch."""
        return Curve(*(values[..., self.epochs >= epoch] for values in self))

    def draw(self, panel: Axes, *, color: str, alpha: float, drawstyle: Any, **line: Any) -> None:
        """Draw the center, the replicas as thin lines, and the band, whose opacity is ``alpha``."""
        look: Look = {"color": color, "drawstyle": drawstyle}
        panel.plot(self.epochs, self.center, linewidth=1.5, zorder=3, **look, **line)
        for replica in self.replicas:
            panel.plot(self.epochs, replica, **look, **REPLICA_LINE)
        step: Any = "post" if drawstyle == "steps-post" else None
        band: Look = {"color": color, "alpha": alpha, "linewidth": 0, "step": step}
        panel.fill_between(self.epochs, self.low, self.high, **band)


def finish(panel: Axes, drops: Sequence[float], first: float, last: float) -> None:
    """Show the horizontal axis from ``first`` to ``last``, with a line at each drop and a grid."""
    drops = [position for position in drops if position >= first]
    for position in drops:
        panel.axvline(position, **DROP_LINE, alpha=min(1, 30 / len(drops)))
    margin = 0.03 * last or 0.1  # space for half a marker
    panel.set_xlim(first - margin, last + margin)
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    panel.tick_params(labelsize=TICK)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def use_log_scale(panel: Axes, lowest: float) -> None:
    """Make the vertical axis that of the scale: logarithmic, with plain numbers."""
    panel.set_yscale("log", base=2)
    panel.set_ylim(lowest, LARGEST_SCALE)
    panel.yaxis.set_major_formatter("{x:.6g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def fit_font(text: str, width: float, largest: float) -> float:
    """Return the font size in points at which text fits into so many inches."""
    longest = max(map(len, text.splitlines()))
    return min(largest, 72 * width / (0.6 * longest))  # a character is 0.6 of the size wide


def write_heading(figure: Figure, heading: str, largest: float) -> None:
    """Write a heading above a figure, no wider than the figure."""
    fontsize = fit_font(heading, figure.get_figwidth(), largest)
    figure.suptitle(heading, fontsize=fontsize, parse_math=False)


def write_reasons(figure: Figure, reasons: Sequence[str], more: str = "") -> None:
    """Add lines below the panels: the first reasons, numbered, and how many more there are."""
    # A number of one digit is aligned by a space that is as wide as a digit.
    numbered = enumerate(reasons[:MOST_LISTED], start=1)
    lines = [f"{number:\N{FIGURE SPACE}>2}  {reason}" for number, reason in numbered]
    if num_more := len(reasons) - len(lines):
        lines.append(f"and {num_more:,} more{more}")
    figure.set_figheight(figure.get_figheight() + LINE * len(lines))
    look: Look = {"fontsize": NOTE, "color": "#333333", "parse_math": False}
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", **look)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of the path.

    Equal figures give equal files, without a date or random names. Raises ``ConfigError`` for
    another suffix and ``StorageError`` if the file cannot be written.
    """
    kind = check_format(path)
    metadata: Look = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "plateau-train"}), warnings.catch_warnings():
        # Characters that the font lacks, in the name of a class or run, are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(picture, format=kind, dpi=150, metadata=metadata[kind])
    storage.write_bytes(path, picture.getvalue())
