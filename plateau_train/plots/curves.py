"""Curves over the epochs: their center and band, what a panel shows of them, and its limits."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from plateau_train.plots import PlottedRun
from plateau_train.plots.style import CHARACTER, Look, Theme
from plateau_train.run.records import Drop

LEAST_SHARE = 0.5  # of the height of a panel that its later points fill


class Contents(NamedTuple):
    """What the panels of a figure show."""

    runs: Sequence[PlottedRun]
    drops: Sequence[Drop] = ()  # those of a single replica

    @property
    def last_epoch(self) -> int:
        return max(history.last_epoch for run in self.runs for history in run.histories)

    @property
    def has_val(self) -> bool:
        """Whether all runs held out images."""
        return all(run.histories[0].records[0].val_loss is not None for run in self.runs)


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

        A replica is NaN after its end. The mean is 0 where a scale has underflowed to 0.
        """
        scales = np.array(replicas)
        low, high = np.nanmin(scales, axis=0), np.nanmax(scales, axis=0)
        with np.errstate(divide="ignore"):
            mean = np.exp2(np.nanmean(np.log2(scales), axis=0))
        drawn = scales if is_single and len(scales) > 1 else scales[:0]
        return cls(np.array(epochs), np.clip(mean, low, high), low, high, drawn)  # it is rounded

    @property
    def rows(self) -> list[np.ndarray]:
        """All that is drawn: the center, the ends of the band, and the replicas."""
        return [self.center, self.low, self.high, *self.replicas]

    def without_band(self) -> "Curve":
        return self._replace(low=self.center, high=self.center)

    def draw(
        self, panel: Axes, theme: Theme, *, color: str, alpha: float, drawstyle: Any, **line: Any
    ) -> None:
        """Draw the center, the replicas as thin lines, and the band, whose opacity is ``alpha``."""
        look: Look = {"color": color, "drawstyle": drawstyle}
        panel.plot(self.epochs, self.center, linewidth=theme.line, zorder=3, **look, **line)
        for replica in self.replicas:
            panel.plot(self.epochs, replica, linewidth=0.4 * theme.line, alpha=0.35, **look)
        if np.array_equal(self.low, self.high, equal_nan=True):
            return
        step: Any = "post" if drawstyle == "steps-post" else None
        band: Look = {"color": color, "alpha": alpha, "linewidth": 0, "step": step}
        panel.fill_between(self.epochs, self.low, self.high, **band)


class Start(NamedTuple):
    """Values at the start that may leave a panel, and values that may not."""

    name: str
    values: Sequence[float]
    inside: Sequence[float]


def cut_start(
    panel: Axes,
    points: Sequence[tuple[np.ndarray, np.ndarray]],
    firsts: Sequence[float],
    start: Start,
    theme: Theme,
    *,
    is_loss: bool,
) -> None:
    """Let the first points leave a panel, if they would flatten the later ones.

    The points are positions and values. Those before one of the positions ``firsts`` may leave, as
    few of them as possible. The values of the start are written at the edge that they pass.
    """

    def limits(first: float) -> tuple[float, float]:
        shown = [values[positions >= first] for positions, values in points]
        values = np.concatenate([start.inside, *shown])
        values = values[np.isfinite(values)]
        return float(values.min()), float(values.max())

    low, high = limits(firsts[-1])
    first = next(
        first for first in firsts if high - low >= LEAST_SHARE * np.ptp(np.array(limits(first)))
    )
    low, high = limits(first)
    margin = 0.07 * (high - low) or 0.01 * abs(high) or 0.01
    is_inside = low <= min(start.values) and max(start.values) <= high
    space = margin if is_inside else margin + 0.07 * theme.enlarged * (high - low)
    panel.set_ylim(low - (margin if is_loss else space), high + (space if is_loss else margin))
    if is_inside:
        return
    numbers = dict.fromkeys(f"{value:.3g}" for value in (min(start.values), max(start.values)))
    arrow = "\N{UPWARDS ARROW}" if is_loss else "\N{DOWNWARDS ARROW}"
    text = f"{arrow} {start.name}: {' to '.join(numbers)}"
    fontsize = min(0.9 * theme.tick, 0.7 * theme.panel_width(panel) / (CHARACTER * len(text)))
    look: Look = {"fontsize": fontsize, "color": theme.muted, "zorder": 5, "in_layout": False}
    look |= {"va": "top" if is_loss else "bottom", "textcoords": "offset points"}
    look |= {"xytext": (7 * theme.enlarged, 0), "xycoords": panel.get_xaxis_transform()}
    panel.annotate(text, (first, 0.985 if is_loss else 0.02), **look)
