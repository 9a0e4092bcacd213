"""The panel of the scale: its value over the epochs, and the drops of each replica."""

from collections.abc import Sequence
from itertools import chain, compress

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from plateau_train.plots import PlottedRun, style
from plateau_train.plots.style import LARGEST_SCALE, Curve, Look
from plateau_train.run.history import History, completed
from plateau_train.run.records import Drop

MOST_ROWS = 24  # of ticks

STRIP = 0.26  # the height of the strip of these rows, as a share of the height of the panel

Steps = tuple[Sequence[float], Sequence[float]]  # epochs, and the scale from each of them on


def draw_scale(panel: Axes, runs: Sequence[PlottedRun], drops: Sequence[Drop]) -> None:
    """Draw the scale over the epochs; of the replicas of the plateau rule, the geometric mean.

    The band of the plateau rule reaches from the lowest to the highest scale of the replicas.
    Marks and numbers ``drops``, which are those of a single replica. Without them, draws a tick for
    each drop of every replica, in a strip below the curves.
    """
    steps = [[_steps(history) for history in completed(run.histories)] for run in runs]
    # A cosine schedule ends near 0. It is cut off, as it would compress the curves of the others.
    has_drops = [run.settings.optimizer.schedule in ("plateau", "step") for run in runs]
    dropping = chain.from_iterable(compress(steps, has_drops))
    scales = [scale for _, scales in dropping for scale in scales]
    lowest = min((scale for scale in scales if scale > 0), default=1) / 1.5
    for run, replicas in zip(runs, steps, strict=True):
        _draw_run(panel, run, replicas, lowest)
    histories = [history for run in runs for history in run.histories]
    last_epoch = max(history.records[-1].epoch for history in histories)
    style.finish(panel, [drop.position for drop in drops], 0, last_epoch)
    if not scales:
        panel.set_ylim(-0.03, 1.05)
        return
    style.use_log_scale(panel, lowest)
    if drops:
        _number_drops(panel, drops)
    elif any(history.drops for history in histories):
        _draw_ticks(panel, runs, lowest)


def _steps(history: History) -> Steps:
    """Return the scale after the last step of each epoch, and after each drop."""
    points = [(float(record.epoch), record.scale) for record in history.records]
    points += [(drop.position, drop.scale_after) for drop in history.drops]
    epochs, scales = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    return epochs, scales


def _draw_run(panel: Axes, run: PlottedRun, replicas: Sequence[Steps], lowest: float) -> None:
    """Draw the curve of a run, where a scale or mean of 0 becomes ``lowest``."""
    look: Look = {"color": run.color, "linestyle": run.linestyle, "alpha": 0.2}
    schedule = run.settings.optimizer.schedule
    if schedule != "plateau":  # a function of the step, the same for all replicas
        curve = Curve.of(replicas[0][0], [replicas[0][1]], is_single=run.is_single)
        curve.draw(panel, drawstyle="steps-pre" if schedule == "step" else "default", **look)
        return
    grid = np.unique(np.concatenate([epochs for epochs, _ in replicas]))
    on_grid = [
        np.array(scales)[np.searchsorted(epochs, grid, side="right") - 1]
        for epochs, scales in replicas
    ]
    epochs, *curves = Curve.of_scales(grid, on_grid, is_single=run.is_single)
    curve = Curve(epochs, *(np.maximum(scales, lowest) for scales in curves))
    label = "geometric mean, min to max" if len(curve.replicas) else None
    curve.draw(panel, drawstyle="steps-post", label=label, **look)


def _draw_ticks(panel: Axes, runs: Sequence[PlottedRun], lowest: float) -> None:
    """Draw a tick for each drop in a strip below the curves, in a row for each replica or run."""
    panel.set_ylim(lowest * (lowest / LARGEST_SCALE) ** (STRIP / (1 - STRIP)), LARGEST_SCALE)
    panel.set_yticks([tick for tick in panel.get_yticks() if lowest <= tick <= LARGEST_SCALE])
    for line in panel.lines:  # a cosine schedule would continue through the strip
        line.set_clip_path(Rectangle((0, STRIP), 1, 1 - STRIP, transform=panel.transAxes))
    rows = [(run.color, [history]) for run in runs for history in run.histories]
    if len(rows) > MOST_ROWS:
        rows = [(run.color, list(run.histories)) for run in runs]
    unit = "run" if len(rows) == len(runs) else "seed"
    caption = f"drops (one row per {unit})" if len(rows) > 1 else "drops of all seeds"
    look: Look = {"fontsize": style.NOTE, "va": "top", "transform": panel.transAxes}
    panel.text(0.01, STRIP - 0.01, caption, **look)
    height = (STRIP - 0.07) / len(rows)
    for number, (color, histories) in enumerate(rows, start=1):
        bottom = STRIP - 0.06 - number * height
        positions = [drop.position for history in histories for drop in history.drops]
        look = {"color": color, "linewidth": 1.2, "alpha": 1 if len(histories) == 1 else 0.4}
        look |= {"transform": panel.get_xaxis_transform()}
        panel.vlines(positions, bottom, bottom + 0.8 * height, **look)


def _number_drops(panel: Axes, drops: Sequence[Drop]) -> None:
    """Write the number of each drop beside it, unless it would cover the number before."""
    to_shares = panel.transScale + panel.transLimits
    look: Look = {"textcoords": "offset points", "va": "center", "in_layout": False}
    last = (-1.0, 2.0)
    for number, drop in enumerate(drops, start=1):
        height = (drop.scale_before * max(drop.scale_after, panel.get_ylim()[0])) ** 0.5
        place = drop.position, height
        x, y = to_shares.transform(place)
        if x - last[0] > 0.06 or last[1] - y > 0.05:
            last = (x, y)
            panel.annotate(f"{number}", place, xytext=(3, 0), fontsize=style.NOTE, **look)
