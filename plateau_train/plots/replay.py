"""The plot of a replay: the values that the rule observed, above the scale."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plateau_train.numerics.replay import Row
from plateau_train.plots import style
from plateau_train.plots.style import Look
from plateau_train.run.series import Series

# The largest number of observations that are drawn with dots, and of characters of a reason.
MAX_DOTS, MAX_CHARS = 120, 173

WIDTH = 12  # inches

# The lines of rules that agree cover each other, so the later ones are dashed and dotted.
RULE_STYLES = (("black", "-", 2.0), (style.VERMILION, "--", 2.4), (style.SKY_BLUE, ":", 2.6))
PALE_ORANGE = "#F0C270"


def draw_replay(
    series: Series,
    rules: Mapping[str, Sequence[Row]],
    *,
    rule: str,
    reasons: Sequence[str],
    change: Row | None,
) -> Figure:
    """Draw the values above the scale of each rule; the first rule is the one of training.

    ``rule`` describes that rule, and ``reasons`` its drops. From the value ``change`` on the plot
    is marked as counterfactual.
    """
    rows = next(iter(rules.values()))
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    number = f"{len(rows):,} value{'s' if len(rows) > 1 else ''}"
    style.write_heading(figure, f"{number} from {series.title}\n{rule}", style.TITLE)
    _draw_values(top, series, [row for row in rows if row.is_complete])
    _draw_scales(bottom, series, rules)
    drops, end = [_x(series, row) for row in rows if row.is_drop], _x(series, rows[-1])
    for panel in (top, bottom):
        style.finish(panel, drops, 0, end)
        panel.set_xlim(-0.05 * end, 1.05 * end)
        if change is not None:
            panel.axvspan(_x(series, change), end, color="#F2F2F2", zorder=-1, linewidth=0)
    if change is not None:
        look: Look = {"transform": bottom.get_xaxis_transform(), "fontsize": style.TICK}
        bottom.text(end, 0.97, "counterfactual", ha="right", va="top", style="italic", **look)
    figure.align_ylabels()
    style.write_reasons(figure, [reason[:MAX_CHARS] for reason in reasons])
    return figure


def _draw_values(panel: Axes, series: Series, rows: Sequence[Row]) -> None:
    """Draw the observations, the values that they were compared with, and the drops."""
    panel.set_ylabel(series.observed, fontsize=style.LABEL, parse_math=False)
    x = np.array([_x(series, row) for row in rows])
    observed = np.array([row.mean for row in rows])
    # Before the first observation they are infinite, and matplotlib leaves them out.
    best, threshold = [row.best for row in rows], [row.threshold for row in rows]
    below = {"drawstyle": "steps-mid", "zorder": 1.5}
    panel.plot(x, best, color=PALE_ORANGE, linewidth=3.5, label="best so far", **below)
    panel.plot(x, threshold, "--", color="black", linewidth=1, label="to beat", **below)
    panel.margins(y=0.1)
    dots = {"marker": "o", "markersize": 3.5} if len(rows) <= MAX_DOTS else {}
    panel.plot(x, observed, color=style.BLUE, linewidth=1.5, label="observed", **dots)
    is_drop = np.array([row.is_drop for row in rows], bool)
    x, drops = x[is_drop], observed[is_drop]
    mark = {"color": style.VERMILION, "markersize": 9, "markeredgecolor": "white", "zorder": 4}
    panel.plot(x, drops, "v", label="drop of the scale", **mark)
    above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    for number, place in enumerate(zip(x, drops, strict=True), start=1):
        if number <= style.MOST_LISTED:
            panel.annotate(f"{number}", place, fontsize=style.TICK, fontweight="bold", **above)
    _zoom_past_start(panel, observed)
    panel.legend(ncols=4, frameon=False, fontsize=style.TICK, **style.ABOVE)


def _zoom_past_start(panel: Axes, observed: np.ndarray) -> None:
    """Limit the axis to the later values if the first ones would flatten them; add a note."""
    later = observed[max(1, len(observed) // 10) :]
    if len(observed) < 10 or np.ptp(later) > 0.35 * np.ptp(observed):
        return
    margin = 0.15 * np.ptp(later) or 0.01
    panel.set_ylim(later.min() - margin, later.max() + margin)
    if observed[0] > later.max():
        note = panel.text(
            0.004, 0.97, f"the first value is {observed[0]:.4g}", transform=panel.transAxes
        )
        note.set(va="top", fontsize=10, style="italic")


def _draw_scales(panel: Axes, series: Series, rules: Mapping[str, Sequence[Row]]) -> None:
    """Draw the scale of each rule as steps, on a logarithmic axis."""
    lowest = 1.0
    for (name, rows), (color, linestyle, width) in zip(rules.items(), RULE_STYLES, strict=False):
        drops = [row for row in rows if row.is_drop]
        x = [0.0, *(_x(series, row) for row in drops), _x(series, rows[-1])]
        # A scale that has become 0 in float32 cannot be drawn on a logarithmic axis.
        scales = [1.0, *(row.scale or row.scale_before for row in drops)]
        lowest = min(lowest, *scales)
        line = {"color": color, "linestyle": linestyle, "linewidth": width, "label": name}
        panel.plot(x, [*scales, scales[-1]], drawstyle="steps-post", **line)
    style.use_log_scale(panel, lowest / 1.5)
    panel.set_ylabel("scale", fontsize=style.LABEL)
    panel.set_xlabel("epoch" if series.positions else "number", fontsize=style.LABEL)
    if len(rules) > 1:
        panel.legend(loc="lower left", frameon=False, fontsize=style.TICK)


def _x(series: Series, row: Row) -> float:
    return series.positions[row.number - 1].position if series.positions else row.number
