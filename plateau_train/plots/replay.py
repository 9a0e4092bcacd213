"""The picture of a replay: the values that the rule weighed, and what became of the scale."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from plateau_train.report.replays import Row, Series, describe_rule, find_change, where

# So many observations have a dot each, and so many reasons, of so many characters, stand below.
MOST_DOTS, MOST_REASONS, MOST_CHARACTERS = 120, 10, 175

WIDTH = 12  # inches

# Okabe and Ito's colours, which the colour-blind tell apart. Where rules agree their lines lie on
# each other: the later ones are thinner and broken.
STYLES = (("black", "-", 2.0), ("#D55E00", "--", 2.4), ("#56B4E9", ":", 2.6))
VALUE, BEST, DROP = "#0072B2", "#F0C270", "#D55E00"


def draw_replay(series: Series, rules: Mapping[str, Sequence[Row]]) -> Figure:
    """Draw the values over the scale of each rule; the first one is ours."""
    rows = next(iter(rules.values()))
    seen = [row for row in rows if row.observation is not None]
    drops = [row for row in rows if row.reason]
    reasons = _reasons(series, drops)
    figure = Figure(figsize=(WIDTH, 6.4 + 0.17 * len(reasons)), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    number = f"{len(rows):,} value{'s' if len(rows) > 1 else ''}"
    heading = f"{number} from {series.title}\n{describe_rule(series.rule)}"
    # Smaller for a run with a very long name.
    fontsize = min(13, 72 * WIDTH / (0.6 * max(map(len, heading.splitlines()))))
    figure.suptitle(heading, fontsize=fontsize, parse_math=False)
    _draw_values(top, series, seen)
    _draw_scales(bottom, series, rules)
    end = _x(series, rows[-1])
    changed = find_change(series, rows) if series.places else None
    for panel in (top, bottom):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=11)
        for row in drops:
            panel.axvline(_x(series, row), color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        if changed is not None:
            panel.axvspan(_x(series, changed), end, color="#F2F2F2", zorder=-1, linewidth=0)
    if changed is not None:
        bottom.text(
            end, 0.97, "counterfactual", ha="right", va="top", fontsize=11, style="italic",
            transform=bottom.get_xaxis_transform(),
        )  # fmt: skip
    figure.supxlabel("\n".join(reasons), x=0.01, ha="left", fontsize=8.5, parse_math=False)
    return figure


def _draw_values(panel: Axes, series: Series, seen: Sequence[Row]) -> None:
    """Draw what was observed, what it was weighed against, and what lowered the scale."""
    panel.set_ylabel(series.observed, fontsize=12, parse_math=False)
    places = np.array([_x(series, row) for row in seen])
    observed, best, to_beat = (
        np.array([getattr(row, name) for row in seen], float)
        for name in ("observation", "best", "to_beat")  # None before the first is NaN
    )
    bars: dict[str, Any] = {"drawstyle": "steps-mid", "zorder": 1.5}
    panel.plot(places, best, color=BEST, linewidth=3.5, label="best so far", **bars)
    panel.plot(places, to_beat, "--", color="black", linewidth=1, label="to beat", **bars)
    panel.margins(x=0.03, y=0.1)
    dots = {"marker": "o", "markersize": 3.5} if len(seen) <= MOST_DOTS else {}
    panel.plot(places, observed, color=VALUE, linewidth=1.5, label="observed", **dots)
    fell = np.array([row.reason is not None for row in seen], bool)
    panel.plot(
        places[fell], observed[fell], "v", color=DROP, markersize=9, markeredgecolor="white",
        label="lowers the scale", zorder=4,
    )  # fmt: skip
    drops = zip(places[fell], observed[fell], strict=True)
    for number, place in enumerate(itertools.islice(drops, MOST_REASONS), start=1):
        panel.annotate(
            f"{number}", place, xytext=(0, 7), textcoords="offset points", ha="center",
            fontsize=11, fontweight="bold",
        )  # fmt: skip
    _leave_out_the_start(panel, observed)
    # Above the panel, where it can lie on no curve.
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=11)


def _leave_out_the_start(panel: Axes, observed: np.ndarray) -> None:
    """Show the later values larger where the first ones would flatten them, and say so."""
    later = observed[max(1, len(observed) // 10) :]
    if len(observed) < 10 or np.ptp(later) > 0.35 * np.ptp(observed):
        return
    margin = 0.15 * np.ptp(later) or 0.01
    panel.set_ylim(later.min() - margin, later.max() + margin)
    if observed[0] > later.max():
        panel.text(
            0.004, 0.97, f"from {observed[0]:.4g}", va="top", fontsize=10, style="italic",
            transform=panel.transAxes,
        )  # fmt: skip


def _draw_scales(panel: Axes, series: Series, rules: Mapping[str, Sequence[Row]]) -> None:
    """Draw the scale of each rule as steps, on a logarithmic axis."""
    lowest = 1.0
    for (name, rows), (color, style, width) in zip(rules.items(), STYLES, strict=False):
        drops = [row for row in rows if row.reason]
        places = [0.0, *(_x(series, row) for row in drops), _x(series, rows[-1])]
        # A scale that has become 0 in float32 has no place on a log axis.
        scales = [1.0, *(row.scale or row.scale_before for row in drops)]
        scales.append(scales[-1])
        lowest = min(lowest, *scales)
        panel.plot(
            places, scales, drawstyle="steps-post", color=color, linestyle=style, linewidth=width,
            label=name,
        )  # fmt: skip
    panel.set_yscale("log", base=2)
    panel.set_ylim(lowest / 1.5, 1.5)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    panel.set_ylabel("scale", fontsize=12)
    panel.set_xlabel("epoch" if series.places else "number", fontsize=12)
    if len(rules) > 1:
        panel.legend(loc="lower left", frameon=False, fontsize=11)


def _reasons(series: Series, drops: Sequence[Row]) -> list[str]:
    """Write why each drop fell, numbered as in the picture, and how many more there are."""
    lines = [
        # The space that is as wide as a figure.
        f"{number:>2}".replace(" ", "\N{FIGURE SPACE}")
        + f"  {where(series, row)}: {row.reason}"[:MOST_CHARACTERS]
        for number, row in enumerate(drops[:MOST_REASONS], start=1)
    ]
    if len(drops) > MOST_REASONS:
        lines.append(f"and {len(drops) - MOST_REASONS:,} more")
    return lines


def _x(series: Series, row: Row) -> float:
    return series.places[row.number - 1].position if series.places else row.number
