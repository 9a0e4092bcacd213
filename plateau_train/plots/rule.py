"""Why the scale dropped: the observations of the plateau rule, and the values to beat."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from plateau_train.plots import PlottedRun
from plateau_train.plots.style import Look, Theme

RULE_LABELS = OBSERVED, TO_BEAT, CAUSE, RAW = (
    "observed", "to beat", "before a drop", "not smoothed",
)  # fmt: skip


class Observations(NamedTuple):
    """What the rule of a replica observed, in the unit of the metric.

    An observation that is below the threshold is an improvement; for an accuracy, one above it.
    """

    epochs: Float[np.ndarray, " observations"]  # where each was made, a fraction inside an epoch
    values: Float[np.ndarray, " observations"]
    raw: Float[np.ndarray, " observations"]  # before they are smoothed
    thresholds: Float[np.ndarray, " observations"]  # from each on, for the next one
    is_cause: Bool[np.ndarray, " observations"]  # whether a drop followed from it and its neighbors

    @classmethod
    def of(cls, runs: Sequence[PlottedRun]) -> "Observations | None":
        """Read the observations of a run, and apply the condition of its rule to them.

        Return None for several runs or replicas, for a schedule that does not follow the rule, and
        where nothing was observed.
        """
        if len(runs) > 1 or len(runs[0].histories) > 1:
            return None
        settings, (history,) = runs[0].settings, runs[0].histories
        rule = settings.plateau
        observed = [each for record in history.records for each in record.observations]
        if settings.optimizer.schedule != "plateau" or not observed:
            return None
        last = history.records[-1]
        epochs = np.array([each.step for each in observed]) * last.epoch / last.step
        thresholds, threshold = [], math.inf
        for each in observed:
            if each.value < threshold:
                threshold = (1 - rule.rtol) * each.value - rule.atol
            thresholds.append(threshold)
        is_cause = np.zeros(len(observed), bool)
        places = {each.step: place for place, each in enumerate(observed)}
        for drop in history.drops:
            if drop.step in places:
                end = places[drop.step] + 1
                is_cause[max(0, end - drop.waited) : end] = True
        values, raw = ([getattr(each, name) for each in observed] for name in ("value", "measured"))
        rows = np.array([values, raw, thresholds], float)
        values, raw, limits = 1 - rows if rule.metric == "accuracy" else rows
        return cls(epochs, values, raw, limits, is_cause)

    @property
    def rows(self) -> list[np.ndarray]:
        """All that is drawn."""
        return [self.values, self.raw, self.thresholds]

    def draw(self, panel: Axes, theme: Theme, color: str, last: float) -> None:
        """Draw the threshold as a line, and the observations as dots, those before drops dark."""
        look: Look = {"color": theme.ink, "linewidth": 0.7 * theme.line, "zorder": 3.5}
        x, y = [*self.epochs, max(last, self.epochs[-1])], [*self.thresholds, self.thresholds[-1]]
        panel.plot(x, y, drawstyle="steps-post", label=TO_BEAT, linestyle=(0, (4, 1.5)), **look)
        # Many dots are smaller, so that they stay apart.
        space = theme.panel_width(panel) / len(self.values)
        size = float(np.clip(1.5 * space, 1.6, 4.5 * theme.enlarged))
        dots: Look = {"linestyle": "none", "marker": "o", "markersize": size}
        pale: Look = {"color": color, "alpha": 0.6 if theme.options.dark else 0.45, "zorder": 2}
        strong: Look = {"color": theme.ink, "zorder": 3.6}
        if not np.array_equal(self.values, self.raw):
            hollow: Look = {"markerfacecolor": "none", "markeredgewidth": 0.5 * theme.line}
            panel.plot(self.epochs, self.raw, label=RAW, **dots | hollow | pale)
            panel.plot(self.epochs, self.values, linewidth=0.8 * theme.line, **pale)
        for chosen, label, shade in (
            (~self.is_cause, OBSERVED, pale),
            (self.is_cause, CAUSE, strong),
        ):
            if chosen.any():
                dots |= {"markeredgewidth": 0, "label": label}
                panel.plot(self.epochs[chosen], self.values[chosen], **dots, **shade)
