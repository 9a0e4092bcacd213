"""The figure of a replay: the values that the rule observed, above the scale."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plateau_train.numerics.replay import Row
from plateau_train.plots.curves import Start, cut_start
from plateau_train.plots.rule import CAUSE, OBSERVED, RAW, TO_BEAT
from plateau_train.plots.scale import use_scale_axis
from plateau_train.plots.style import ABOVE, CHARACTER, Look, Theme
from plateau_train.run.series import Series

# The largest number of observations that are drawn with dots, and of drops that are numbered.
MOST_DOTS, MOST_NUMBERED = 120, 12
FEWEST_CUT = 10  # observations whose first ones may leave the panel

WIDTH, HEIGHT = 12, 6.4  # inches


def draw_replay(
    series: Series,
    rules: Mapping[str, Sequence[Row]],
    theme: Theme,
    *,
    rule: str,
    reasons: Sequence[str],
    ending: str,
    change: Row | None,
) -> Figure:
    """Draw the values above the scale of each rule; the first rule is the one of training.

    ``rule`` describes that rule, ``reasons`` its drops, and ``ending`` its early end, if any. From
    the value ``change`` on the plot is marked as counterfactual.
    """
    rows = next(iter(rules.values()))
    figure = theme.new_figure(WIDTH, HEIGHT)
    top, bottom = theme.add_panels(figure, 2, 1, sharex=True, height_ratios=(3, 2))
    number = f"{len(rows):,} value{'s' if len(rows) > 1 else ''}"
    theme.write_heading(figure, f"{number} from {series.title}\n{rule}", theme.panel_title)
    _draw_values(top, series, [row for row in rows if row.is_complete], theme)
    _draw_scales(bottom, series, rules, theme)
    drops, end = [_x(series, row) for row in rows if row.is_drop], _x(series, rows[-1])
    for panel in (top, bottom):
        theme.finish(panel, drops, end)
        panel.set_xlim(-0.05 * end, 1.05 * end)
        if change is not None:
            panel.axvspan(_x(series, change), end, color=theme.muted, alpha=0.12, zorder=-1, lw=0)
    if change is not None:
        look: Look = {"transform": bottom.get_xaxis_transform(), "fontsize": theme.tick}
        look |= {"bbox": {"facecolor": theme.background, "linewidth": 0, "pad": 1.5}, "zorder": 5}
        height, va = (0.04, "bottom") if bottom.get_yscale() == "linear" else (0.97, "top")
        bottom.text(end, height, "counterfactual", ha="right", va=va, style="italic", **look)
    figure.align_ylabels()
    where, end = "--json prints all drops with their reasons", f"ends at {ending}" if ending else ""
    theme.write_reasons(figure, reasons, where, end)
    return figure


def _draw_values(panel: Axes, series: Series, rows: Sequence[Row], theme: Theme) -> None:
    """Draw the observations, the values that they were compared with, and the drops."""
    label = series.observed
    if CHARACTER * len(label) * theme.label > 1.2 * theme.panel_height(panel):
        label = label.replace(", ", ",\n")
    panel.set_ylabel(label, fontsize=theme.label, parse_math=False)
    x = np.array([_x(series, row) for row in rows])
    observed, means = (
        np.array([getattr(row, name) for row in rows]) for name in ("smoothed", "mean")
    )
    blue, vermilion = theme.run_colors[:2]
    # Before the first observation it is infinite, and matplotlib leaves it out.
    threshold = [row.threshold for row in rows]
    look: Look = {"drawstyle": "steps-mid", "color": theme.ink, "linewidth": 0.7 * theme.line}
    panel.plot(x, threshold, linestyle=(0, (4, 1.5)), zorder=1.5, label=TO_BEAT, **look)
    panel.margins(y=0.1)
    if not np.array_equal(observed, means):
        hollow: Look = {"marker": "o", "markersize": 3.5 * theme.enlarged, "alpha": 0.6}
        hollow |= {"markerfacecolor": "none", "linestyle": "none", "color": theme.muted}
        panel.plot(x, means, label=RAW, **hollow)
    panel.plot(x, observed, color=blue, linewidth=theme.line, label=OBSERVED)
    places = [place for place, row in enumerate(rows) if row.is_drop]
    if len(rows) <= MOST_DOTS:
        is_cause = np.zeros(len(rows), bool)
        for place in places:
            is_cause[place + 1 - rows[place].wait : place + 1] = True
        dots: Look = {"linestyle": "none", "marker": "o", "markersize": 4 * theme.enlarged}
        panel.plot(x[~is_cause], observed[~is_cause], color=blue, **dots)
        if places:
            dots |= {"color": theme.ink, "label": CAUSE}
            panel.plot(x[is_cause], observed[is_cause], zorder=3, **dots)
    size = theme.enlarged * float(np.clip(200 / (1 + len(places)), 4, 9))
    mark: Look = {"color": vermilion, "markersize": size, "zorder": 4, "linestyle": "none"}
    mark |= {"markeredgecolor": theme.background, "markeredgewidth": size / 9}
    if places:
        panel.plot(x[places], observed[places], marker="v", label="drop of the scale", **mark)
    above: Look = {"xytext": (0, 7 * theme.enlarged), "textcoords": "offset points", "ha": "center"}
    last, space = -math.inf, 0.02 * theme.enlarged * (x[-1] - x[0])
    for number, place in enumerate(places[:MOST_NUMBERED], start=1):
        if x[place] - last > space:
            last = x[place]
            spot = last, observed[place]
            panel.annotate(f"{number}", spot, fontsize=theme.tick, fontweight="bold", **above)
    theme.use_few_ticks(panel)
    if len(rows) >= FEWEST_CUT:
        start = Start("first value", [observed[0]], [])
        firsts = x[: 1 + len(x) // 10].tolist()
        cut_start(
            panel, [(x, observed), (x, np.array(threshold))], firsts, start, theme, is_loss=True
        )
    panel.legend(ncols=5, frameon=False, fontsize=theme.tick, **ABOVE)


def _draw_scales(
    panel: Axes, series: Series, rules: Mapping[str, Sequence[Row]], theme: Theme
) -> None:
    """Draw the scale of each rule as steps, on a logarithmic axis."""
    # The lines of rules that agree cover each other, so the later ones are dashed and dotted.
    styles = zip(
        (theme.ink, *theme.run_colors[1:3]), ("-", "--", ":"), (1.3, 1.6, 1.9), strict=True
    )
    lowest, first = 1.0, next(iter(rules.values()))
    for (name, rows), (color, linestyle, width) in zip(rules.items(), styles, strict=False):
        drops = [row for row in rows if row.is_drop]
        points = list(series.warmup.curve) if rows is first else []
        points = points or [(0.0, 1.0)]
        # A scale that has become 0 in float32 cannot be drawn on a logarithmic axis.
        points += [(_x(series, row), row.scale or row.scale_before) for row in drops]
        x, scales = zip(*points, (_x(series, rows[-1]), points[-1][1]), strict=True)
        lowest = min(lowest, *filter(None, scales))
        look: Look = {"color": color, "linestyle": linestyle, "linewidth": width * theme.line}
        panel.plot(x, scales, drawstyle="steps-post", label=name, **look)
    use_scale_axis(panel, lowest, series.rule.factor, series.rule.min_scale, theme)
    panel.set_ylabel("scale", fontsize=theme.label)
    panel.set_xlabel("epoch" if series.positions else "number", fontsize=theme.label)
    if len(rules) > 1:
        panel.legend(loc="lower left", frameon=False, fontsize=theme.tick)


def _x(series: Series, row: Row) -> float:
    return series.positions[row.number - 1].position if series.positions else row.number
