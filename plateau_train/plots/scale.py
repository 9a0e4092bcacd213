"""The panel of the scale: its value over the epochs, and the drops of each replica."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from plateau_train.plots import PlottedRun
from plateau_train.plots.curves import Contents, Curve
from plateau_train.plots.style import Look, Theme
from plateau_train.run.history import History, completed
from plateau_train.run.records import Drop
from plateau_train.run.series import warmup_curve

LONGEST_TICK = 6  # characters
MOST_ROWS = 12  # of ticks
LONGEST_NAME = 14  # characters of a run beside its row
# How far below the drops of other runs the axis may go for a schedule without steps.
SMOOTH_ROOM = 8

STEPPED = ("plateau", "step")  # the schedules whose scale changes in steps

Steps = tuple[Sequence[float], Sequence[float]]  # epochs, and the scale from each of them on


class _Row(NamedTuple):
    """The drops of a replica, or of all replicas of a run, in the strip below the curves."""

    name: str
    color: str
    histories: Sequence[History]


def draw_scale(panel: Axes, contents: Contents, theme: Theme) -> None:
    """Draw the scale over the epochs; of the replicas of the plateau rule, the geometric mean.

    The band of the plateau rule reaches from the lowest to the highest scale of the replicas.
    Marks and numbers the drops of a single replica. Without them, draws a tick for each drop of
    every replica, in a strip below the curves.
    """
    runs, drops = contents.runs, contents.drops
    steps = [[_steps(history, run) for history in completed(run.histories)] for run in runs]
    lowest = _lowest(runs, steps)
    for run, replicas in zip(runs, steps, strict=True):
        _draw_run(panel, run, replicas, lowest / _margin(lowest), theme)
    stepped = [run for run in runs if run.settings.optimizer.schedule in STEPPED]
    plateau = (stepped or runs)[0].settings.plateau
    use_scale_axis(panel, lowest, plateau.factor, plateau.min_scale, theme)
    theme.finish(panel, [drop.position for drop in drops], contents.last_epoch)
    if len(runs) == 1 and len(runs[0].histories) == 1:
        if lowest < 1:
            _number_drops(panel, drops, theme)
    elif any(history.drops for run in runs for history in run.histories):
        _draw_rows(panel, runs, theme)


def use_scale_axis(
    panel: Axes, lowest: float, factor: float, min_scale: float, theme: Theme
) -> None:
    """Make the vertical axis logarithmic, with ticks at scales that the rule can reach.

    It is linear, from 0 to 1, if ``lowest`` is 1.
    """
    if lowest == 1:
        panel.set_ylim(-0.03, 1.08)
        panel.set_yticks([0, 0.5, 1] if theme.is_talk else [0, 0.25, 0.5, 0.75, 1])
        return
    panel.set_yscale("log")
    panel.set_ylim(lowest / _margin(lowest), _margin(lowest))
    ticks = scale_ticks(lowest, factor, min_scale, 4 if theme.is_talk else 9)
    panel.yaxis.set_major_locator(FixedLocator(list(ticks)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: ticks.get(value, ""))


def _margin(lowest: float) -> float:
    """Return the factor by which a logarithmic axis exceeds the scales at both ends."""
    return min(1.5, lowest**-0.12)


def scale_ticks(lowest: float, factor: float, min_scale: float, most: int) -> dict[float, str]:
    """Return scales between ``lowest`` and 1 that the rule can reach, and how they are written.

    These are powers of the factor, and the smallest scale allowed if it was reached. They are
    written as decimal numbers or as fractions if these are short, and otherwise as powers, whose
    exponent is the number of drops.
    """
    num_drops = math.floor(math.log(lowest) / math.log(factor) + 1e-6)
    stride = next(
        stride
        for stride in (1, 2, 3, 4, 5, 10, 20, 25, 50, *range(100, num_drops + 200, 100))
        if num_drops // stride < most
    )
    powers = range(0, num_drops + 1, stride)
    texts = {power: f"{factor**power:.7g}" for power in powers}
    if max(map(len, texts.values())) > LONGEST_TICK and (1 / factor).is_integer():
        texts = {power: f"1/{round(1 / factor) ** power}" if power else "1" for power in powers}
    if max(map(len, texts.values())) > LONGEST_TICK:
        texts = {power: f"${factor:g}^{{{power}}}$" if power else "1" for power in powers}
    ticks = {factor**power: text for power, text in texts.items()}
    if math.isclose(lowest, min_scale, rel_tol=1e-3):
        least = min_scale * factor ** (-stride / 2)
        ticks = {tick: text for tick, text in ticks.items() if tick > least}
        ticks |= {min_scale: f"{min_scale:g}"}
    return ticks


def _lowest(runs: Sequence[PlottedRun], steps: Sequence[Sequence[Steps]]) -> float:
    """Return the lowest scale that the axis shows; 1 if nothing falls in steps.

    A schedule without steps is inside the axis, unless that would compress the other runs.
    """
    lowest = {True: 1.0, False: 1.0}  # of the schedules that fall in steps, and of the others
    for run, replicas in zip(runs, steps, strict=True):
        is_stepped = run.settings.optimizer.schedule in STEPPED
        positive = [scale for _, scales in replicas for scale in scales if scale > 0]
        lowest[is_stepped] = min(lowest[is_stepped], *positive)
    if lowest[True] == 1:
        return 1.0
    return min(lowest[True], max(lowest[False], lowest[True] / SMOOTH_ROOM))


def _steps(history: History, run: PlottedRun) -> Steps:
    """Return the scale after each epoch and each drop, and of the rule also in the warm-up."""
    points, optimizer, last = (
        list[tuple[float, float]](),
        run.settings.optimizer,
        history.records[-1],
    )
    if optimizer.schedule == "plateau" and last.epoch:
        points += warmup_curve(optimizer, last.step / last.epoch, last.epoch)
    end = points[-1][0] if points else -1
    points += [(float(each.epoch), each.scale) for each in history.records if each.epoch > end]
    points += [(drop.position, drop.scale_after) for drop in history.drops]
    epochs, scales = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    return epochs, scales


def _draw_run(
    panel: Axes, run: PlottedRun, replicas: Sequence[Steps], bottom: float, theme: Theme
) -> None:
    """Draw the curve of a run, where a scale or mean below ``bottom`` is drawn there."""
    look: Look = {"color": run.color, "linestyle": run.linestyle, "alpha": 0.2}
    schedule = run.settings.optimizer.schedule
    if schedule != "plateau":  # a function of the step, the same for all replicas
        epochs, scales = replicas[0]
        hidden = [epochs[end] for end in (0, -1) if scales[end] < bottom < 1]
        if hidden:  # the axis is logarithmic, and shows a part
            marker: Look = {"marker": "v", "markersize": 6 * theme.enlarged, "zorder": 4}
            marker |= {"color": run.color, "clip_on": False, "linestyle": "none"}
            panel.plot(hidden, [bottom] * len(hidden), **marker)
            scales = np.maximum(scales, bottom)
        curve = Curve.of(epochs, [scales], is_single=run.is_single)
        drawstyle = "steps-pre" if schedule == "step" else "default"
        curve.draw(panel, theme, drawstyle=drawstyle, **look)
        return
    grid = np.unique(np.concatenate([epochs for epochs, _ in replicas]))
    on_grid = [
        np.where(
            grid <= epochs[-1],
            np.array(scales)[np.searchsorted(epochs, grid, side="right") - 1],
            np.nan,  # after its end
        )
        for epochs, scales in replicas
    ]
    epochs, *curves = Curve.of_scales(grid, on_grid, is_single=run.is_single)
    curve = Curve(epochs, *(np.maximum(scales, bottom) for scales in curves))
    label = "geometric mean, min to max" if len(curve.replicas) else None
    curve.draw(panel, theme, drawstyle="steps-post", label=label, **look)


def _draw_rows(panel: Axes, runs: Sequence[PlottedRun], theme: Theme) -> None:
    """Draw a tick for each drop in a strip below the curves, in a named row for each replica."""
    rows = _rows(runs)
    height = min(0.055, 0.4 / len(rows))
    strip = height * len(rows) + 0.1
    low, high = panel.get_ylim()
    if panel.get_yscale() == "log":
        low *= (low / high) ** (strip / (1 - strip))
    else:
        low -= (high - low) * strip / (1 - strip)
    panel.set_ylim(low, high)
    for line in panel.lines:  # a schedule without steps would continue through the strip
        line.set_clip_path(Rectangle((0, strip), 1, 1 - strip, transform=panel.transAxes))
    look: Look = {"fontsize": theme.note, "transform": panel.transAxes, "va": "center"}
    panel.text(0.01, strip - 0.05, "drops", color=theme.muted, **look)
    look |= {
        "fontsize": min(theme.note, height * theme.panel_height(panel)),
        "ha": "right",
        "parse_math": False,
    }
    for number, (name, color, histories) in enumerate(rows):
        top = strip - 0.09 - number * height
        positions = [drop.position for history in histories for drop in history.drops]
        ticks: Look = {"color": color, "linewidth": 1.2 * theme.enlarged}
        ticks |= {"alpha": 1 if len(histories) == 1 else 0.5}
        transform = panel.get_xaxis_transform()
        panel.vlines(positions, top - 0.8 * height, top, transform=transform, **ticks)
        panel.text(-0.02, top - 0.4 * height, name, color=color, **look)


def row_names(runs: Sequence[PlottedRun]) -> list[str]:
    """Return the labels of the runs, or their numbers if the labels are long."""
    if max(len(run.label) for run in runs) <= LONGEST_NAME:
        return [run.label for run in runs]
    return [f"run {number}" for number in range(1, 1 + len(runs))]


def _rows(runs: Sequence[PlottedRun]) -> list[_Row]:
    """Return a row for each seed of a single run, or for each of several runs with drops."""
    if len(runs) > 1:
        return [
            _Row(name, run.color, run.histories)
            for name, run in zip(row_names(runs), runs, strict=True)
            if any(history.drops for history in run.histories)
        ]
    (run,) = runs
    if len(run.histories) > MOST_ROWS:
        return [_Row("all seeds", run.color, run.histories)]
    return [_Row(f"seed {history.seed}", run.color, [history]) for history in run.histories]


def _number_drops(panel: Axes, drops: Sequence[Drop], theme: Theme) -> None:
    """Write the number of each drop beside it, unless it would cover the number before."""
    to_shares = panel.transScale + panel.transLimits
    # To the right of a drop, nothing is above the curve.
    look: Look = {"textcoords": "offset points", "va": "bottom", "in_layout": False}
    look |= {"xytext": (3 * theme.enlarged, 2 * theme.enlarged), "fontsize": theme.note}
    last = (-1.0, 2.0)
    for number, drop in enumerate(drops, start=1):
        place = drop.position, max(drop.scale_after, panel.get_ylim()[0])
        x, y = to_shares.transform(place)
        if x - last[0] > 0.06 * theme.enlarged or last[1] - y > 0.06 * theme.enlarged:
            last = (x, y)
            if x > 1 - 0.03 * theme.enlarged:  # nothing is below the curve to the left
                offset = (-3 * theme.enlarged, 2 * theme.enlarged)
                panel.annotate(f"{number}", place, **look | {"xytext": offset, "ha": "right"})
                continue
            panel.annotate(f"{number}", place, **look)
