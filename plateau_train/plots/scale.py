"""The panel of the scale: when it fell, of which training, and what the numbers stand for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from plateau_train import config
from plateau_train.run.history import completed
from plateau_train.run.records import Drop, History

# So many drops have their reasons under the panels, and so many trainings a row of ticks each.
MOST_LISTED, MOST_ROWS = 12, 24

# The height of the strip of these rows, as a share of the panel's.
STRIP = 0.26


class Drawn(NamedTuple):
    """A run as it is drawn beside others, or alone."""

    settings: config.Settings
    histories: Sequence[History]
    label: str = ""
    color: str = "black"
    style: Any = "-"


def draw_scale(panel: Axes, runs: Sequence[Drawn]) -> None:
    """Draw what multiplies the learning rate: steps where drops fell, else a schedule.

    Of replicas under the plateau rule it is the mean of the logarithm, with its band.
    """
    dropping = [run for run in runs if run.settings.optimizer.schedule in ("plateau", "step")]
    paths = [_scales(run, each) for run in dropping for each in completed(run.histories)]
    # A scale that has become 0 in float32 has no place on a log axis: draw it at the edge. A
    # cosine ends near 0, and would press together what the others do.
    lowest = min((scale for path in paths for scale in path.scales if scale > 0), default=1) / 1.5
    for run in runs:
        whole = completed(run.histories)
        look: dict[str, Any] = {"color": run.color, "linestyle": run.style}
        is_mean = len(whole) > 1 and run.settings.optimizer.schedule == "plateau"
        paths = [_scales(run, each, lowest) for each in (whole if is_mean else whole[:1])]
        if not is_mean:
            (path,) = paths
            panel.plot(path.positions, path.scales, drawstyle=path.drawstyle, **look)
            continue
        grid = np.unique(np.concatenate([path.positions for path in paths]))
        powers = np.array(
            [
                np.log2(path.scales)[np.searchsorted(path.positions, grid, side="right") - 1]
                for path in paths
            ]
        )
        mean, spread = powers.mean(axis=0), powers.std(axis=0, ddof=1)
        label = "mean of the logarithm" if len(runs) == 1 else None
        panel.plot(grid, 2**mean, drawstyle="steps-post", label=label, **look)
        band = (2 ** (mean - spread), 2 ** (mean + spread))
        panel.fill_between(grid, *band, step="post", color=run.color, alpha=0.2, linewidth=0)
        for path in paths if len(runs) == 1 else ():
            panel.plot(
                path.positions, path.scales, color=run.color, linewidth=0.6, alpha=0.35,
                drawstyle="steps-post",
            )  # fmt: skip
    last_epoch = max(each.records[-1].epoch for run in runs for each in run.histories)
    finish(panel, runs[0].histories[0].drops if _is_single(runs) else (), last_epoch)
    if not dropping:
        panel.set_ylim(-0.03, 1.05)
        return
    panel.set_yscale("log", base=2)
    panel.set_ylim(lowest, 1.5)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    if not _is_single(runs) and any(each.drops for run in runs for each in run.histories):
        _draw_ticks(panel, runs, lowest)


def _is_single(runs: Sequence[Drawn]) -> bool:
    return sum(len(run.histories) for run in runs) == 1


class _Path(NamedTuple):
    """What the scale of one training was, over positions in epochs."""

    positions: list[float]
    scales: list[float]
    drawstyle: Any


def _scales(run: Drawn, history: History, lowest: float = 0.0) -> _Path:
    records, drops = history.records, history.drops
    schedule = run.settings.optimizer.schedule
    if schedule == "plateau":
        positions = [records[0].epoch, *(drop.position for drop in drops), records[-1].epoch]
        scales = [1.0, *(drop.scale_after for drop in drops), records[-1].scale]
        return _Path(positions, [scale or lowest for scale in scales], "steps-post")
    # A record has the scale of its epoch's last step.
    style = "steps-pre" if schedule == "step" else "default"
    return _Path([record.epoch for record in records], [record.scale for record in records], style)


def _draw_ticks(panel: Axes, runs: Sequence[Drawn], lowest: float) -> None:
    """Draw a tick for each drop in a strip under the scale, a row a training, or a run."""
    panel.set_ylim(lowest * (lowest / 1.5) ** (STRIP / (1 - STRIP)), 1.5)
    panel.set_yticks([tick for tick in panel.get_yticks() if lowest <= tick <= 1.5])
    for line in panel.lines:  # a cosine would run on through the strip
        line.set_clip_path(Rectangle((0, STRIP), 1, 1 - STRIP, transform=panel.transAxes))
    rows = [[(run, each)] for run in runs for each in run.histories]
    if len(rows) > MOST_ROWS:
        rows = [[(run, each) for each in run.histories] for run in runs]
    of_each = "a run" if len(rows) == len(runs) else "a seed"
    caption = f"drops, a row {of_each}" if len(rows) > 1 else "drops of all seeds"
    panel.text(
        0.01, STRIP - 0.01, caption, fontsize=8.5, va="top",
        transform=panel.transAxes,
    )  # fmt: skip
    height = (STRIP - 0.07) / len(rows)
    for number, row in enumerate(rows, start=1):
        bottom = STRIP - 0.06 - number * height
        for run, history in row:
            panel.vlines(
                [drop.position for drop in history.drops], bottom, bottom + 0.8 * height,
                color=run.color, linewidth=1.2, alpha=1 if len(row) == 1 else 0.4,
                transform=panel.get_xaxis_transform(),
            )  # fmt: skip


def number_drops(panel: Axes, drops: Sequence[Drop]) -> None:
    """Write the number of each drop beside its step, as far as there is room."""
    to_shares = panel.transScale + panel.transLimits
    last = (-1.0, 2.0)
    for number, drop in enumerate(drops, start=1):
        height = (drop.scale_before * max(drop.scale_after, panel.get_ylim()[0])) ** 0.5
        x, y = to_shares.transform((drop.position, height))
        if x - last[0] > 0.06 or last[1] - y > 0.05:
            last = (x, y)
            panel.annotate(
                f"{number}", (drop.position, height), xytext=(3, 0), textcoords="offset points",
                fontsize=8.5, va="center", in_layout=False,
            )  # fmt: skip


def list_reasons(drops: Sequence[Drop]) -> list[str]:
    """Write why each drop fell, a line each, with its number on the panel of the scale."""
    shown = drops if len(drops) <= MOST_LISTED else drops[: MOST_LISTED - 1]
    lines = [
        # The space that is as wide as a figure.
        f"{number:>2}".replace(" ", "\N{FIGURE SPACE}") + f"  {drop.describe()}"
        for number, drop in enumerate(shown, start=1)
    ]
    if len(shown) < len(drops):
        more = f"{len(drops) - len(shown):,} more"
        lines.append(f"and {more}, which events.jsonl has with their reasons")
    return lines


def finish(panel: Axes, drops: Sequence[Drop], last_epoch: int) -> None:
    """Draw the drops through a panel, and lay out its axis of epochs."""
    for drop in drops:
        panel.axvline(
            drop.position, color="#999999", linewidth=0.8, linestyle=":", zorder=0,
            alpha=min(1, 30 / len(drops)),
        )  # fmt: skip
    margin = 0.03 * last_epoch or 0.1  # room for a marker on the first and on the last epoch
    panel.set_xlim(-margin, last_epoch + margin)
    panel.tick_params(labelsize=11)
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
