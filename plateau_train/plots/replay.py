"""The plot of a replay: the values that the rule observed, above the scale."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from plateau_train.numerics.replay import Row
from plateau_train.run.series import Series

# Up to how many observations each has a dot; how many reasons stand below, of which length.
MAX_DOTS, MAX_REASONS, MAX_CHARS = 120, 10, 175

WIDTH = 12  # inches

# The colours of Okabe and Ito, which colour-blind readers distinguish. Lines of rules that agree
# cover each other, hence the later ones are dashed and dotted.
STYLES = (("black", "-", 2.0), ("#D55E00", "--", 2.4), ("#56B4E9", ":", 2.6))
VALUE, BEST, DROP = "#0072B2", "#F0C270", "#D55E00"


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
    lines = [
        # This space is as wide as a digit.
        f"{number:>2}".replace(" ", "\N{FIGURE SPACE}") + f"  {reason}"[:MAX_CHARS]
        for number, reason in enumerate(reasons[:MAX_REASONS], start=1)
    ]
    if len(reasons) > MAX_REASONS:
        lines.append(f"and {len(reasons) - MAX_REASONS:,} more")
    figure = Figure(figsize=(WIDTH, 6.4 + 0.17 * len(lines)), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    number = f"{len(rows):,} value{'s' if len(rows) > 1 else ''}"
    heading = f"{number} from {series.title}\n{rule}"
    # The name of a run may be very long.
    fontsize = min(13, 72 * WIDTH / (0.6 * max(map(len, heading.splitlines()))))
    figure.suptitle(heading, fontsize=fontsize, parse_math=False)
    _draw_values(top, series, [row for row in rows if row.is_complete])
    _draw_scales(bottom, series, rules)
    end = _x(series, rows[-1])
    for panel in (top, bottom):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=11)
        for x in (_x(series, row) for row in rows if row.is_drop):
            panel.axvline(x, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        if change is not None:
            panel.axvspan(_x(series, change), end, color="#F2F2F2", zorder=-1, linewidth=0)
    if change is not None:
        place = bottom.get_xaxis_transform()
        note = bottom.text(end, 0.97, "counterfactual", ha="right", va="top", transform=place)
        note.set(fontsize=11, style="italic")
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8.5, parse_math=False)
    return figure


def _draw_values(panel: Axes, series: Series, rows: Sequence[Row]) -> None:
    """Draw the observations, the values that they were compared with, and the drops."""
    panel.set_ylabel(series.observed, fontsize=12, parse_math=False)
    x = np.array([_x(series, row) for row in rows])
    observed = np.array([row.mean for row in rows])
    # inf before the first observation
    best = [math.nan if math.isinf(row.best) else row.best for row in rows]
    threshold = [math.nan if math.isinf(row.best) else row.threshold for row in rows]
    below = {"drawstyle": "steps-mid", "zorder": 1.5}
    panel.plot(x, best, color=BEST, linewidth=3.5, label="best so far", **below)
    panel.plot(x, threshold, "--", color="black", linewidth=1, label="to beat", **below)
    panel.margins(x=0.03, y=0.1)
    dots = {"marker": "o", "markersize": 3.5} if len(rows) <= MAX_DOTS else {}
    panel.plot(x, observed, color=VALUE, linewidth=1.5, label="observed", **dots)
    is_drop = np.array([row.is_drop for row in rows], bool)
    x, drops = x[is_drop], observed[is_drop]
    mark = {"color": DROP, "markersize": 9, "markeredgecolor": "white", "zorder": 4}
    panel.plot(x, drops, "v", label="lowers the scale", **mark)
    above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    for number, place in enumerate(zip(x, drops, strict=True), start=1):
        if number <= MAX_REASONS:
            panel.annotate(f"{number}", place, fontsize=11, fontweight="bold", **above)
    _zoom_past_start(panel, observed)
    # The legend is above the panel, where it covers no curve.
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=11)


def _zoom_past_start(panel: Axes, observed: np.ndarray) -> None:
    """Limit the axis to the later values if the first ones would flatten them; add a note."""
    later = observed[max(1, len(observed) // 10) :]
    if len(observed) < 10 or np.ptp(later) > 0.35 * np.ptp(observed):
        return
    margin = 0.15 * np.ptp(later) or 0.01
    panel.set_ylim(later.min() - margin, later.max() + margin)
    if observed[0] > later.max():
        note = panel.text(0.004, 0.97, f"from {observed[0]:.4g}", transform=panel.transAxes)
        note.set(va="top", fontsize=10, style="italic")


def _draw_scales(panel: Axes, series: Series, rules: Mapping[str, Sequence[Row]]) -> None:
    """Draw the scale of each rule as steps, on a logarithmic axis."""
    lowest = 1.0
    for (name, rows), (color, style, width) in zip(rules.items(), STYLES, strict=False):
        drops = [row for row in rows if row.is_drop]
        x = [0.0, *(_x(series, row) for row in drops), _x(series, rows[-1])]
        # A scale that has become 0 in float32 cannot be drawn on a logarithmic axis.
        scales = [1.0, *(row.scale or row.scale_before for row in drops)]
        lowest = min(lowest, *scales)
        line = {"color": color, "linestyle": style, "linewidth": width, "label": name}
        panel.plot(x, [*scales, scales[-1]], drawstyle="steps-post", **line)
    panel.set_yscale("log", base=2)
    panel.set_ylim(lowest / 1.5, 1.5)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    panel.set_ylabel("scale", fontsize=12)
    panel.set_xlabel("epoch" if series.positions else "number", fontsize=12)
    if len(rules) > 1:
        panel.legend(loc="lower left", frameon=False, fontsize=11)


def _x(series: Series, row: Row) -> float:
    return series.positions[row.number - 1].position if series.positions else row.number
