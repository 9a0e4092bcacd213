"""The five panels over the epochs, of one run or of several runs."""

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from plateau_train.config import Settings
from plateau_train.plots import PlottedRun, style
from plateau_train.plots.scale import draw_scale
from plateau_train.plots.style import Curve, Look
from plateau_train.run.history import History, completed

METRICS = (("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "accuracy"))

WIDTH, HEIGHT = 20, 4.5  # of the panels together, in inches


def draw_run(histories: Sequence[History], settings: Settings) -> Figure:
    """Draw the five panels of a run; the records begin with epoch 0, the untrained network.

    The curves are means over replicas with bands of one standard deviation, and each replica is a
    thin line. The drops of a single replica are numbered, and their reasons are listed below.
    """
    run = PlottedRun(settings, histories, is_single=True)
    drops = histories[0].drops if len(histories) == 1 else ()
    has_val = histories[0].records[0].val_loss is not None
    # A legend of one or two lines is between a panel and its title.
    figure = _make_panels(HEIGHT, pad=42 if has_val else 26)
    style.write_heading(figure, title(histories, settings), style.HEADING)
    more = " drops; events.jsonl lists them with their reasons"
    style.write_reasons(figure, [drop.describe() for drop in drops], more)
    draw_scale(figure.axes[0], [run], drops)
    for panel, (split, metric) in zip(figure.axes[1:], METRICS, strict=True):
        splits = (split, "val") if split == "test" and has_val else (split,)
        lines = [_Line.of(run, name, metric) for name in splits]
        _draw_metric(panel, lines, [drop.position for drop in drops], metric)
    look: Look = {"frameon": False, "borderpad": 0.2, "labelspacing": 0.2, "handlelength": 1.5}
    for panel in figure.axes:
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=style.TICK, **style.ABOVE, **look)
    return figure


def draw_comparison(runs: Sequence[PlottedRun], heading: str) -> Figure:
    """Draw the five panels with a curve for each run: the mean of its replicas, with its band.

    Leaves out the metrics on held-out images, which some of the runs may not have.
    """
    styles = zip(runs, cycle(style.RUN_COLORS), cycle(style.RUN_LINESTYLES), strict=False)
    runs = [run._replace(color=color, linestyle=line) for run, color, line in styles]
    column_width = max(len(run.label) for run in runs) * 0.095 + 0.9  # inches
    num_columns = min(len(runs), max(1, int((WIDTH - 1) / column_width)))
    figure = _make_panels(HEIGHT + style.LINE * -(-len(runs) // num_columns))
    # One legend for all panels, under the heading; the labels may hold any characters.
    line: Look = {"linewidth": 2, "marker": "o"}
    handles = [Line2D([], [], color=run.color, linestyle=run.linestyle, **line) for run in runs]
    look: Look = {"loc": "outside upper center", "frameon": False, "handlelength": 3}
    look |= {"title": heading, "title_fontsize": style.fit_font(heading, WIDTH, style.HEADING)}
    look |= {"ncols": num_columns, "fontsize": style.TICK}
    legend = figure.legend(handles, [run.label for run in runs], **look)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)
    draw_scale(figure.axes[0], runs, ())
    for panel, (split, metric) in zip(figure.axes[1:], METRICS, strict=True):
        _draw_metric(panel, [_Line.of(run, split, metric) for run in runs], (), metric)
    return figure


def title(histories: Sequence[History], settings: Settings) -> str:
    """Return one line with the schedule, the data set, the optimizer, the rule and the seeds."""
    plateau, optimizer = settings.plateau, settings.optimizer
    unit = "steps" if plateau.split == "train" else "epochs"
    window = f" x {plateau.accumulation_size} {unit}" if plateau.accumulation_size > 1 else ""
    patience = f"patience {plateau.patience}{window}, cooldown {plateau.cooldown}"
    rule = {
        "plateau": f", factor {plateau.factor:g}, {patience}",
        "constant": "",
        "cosine": f", down to a scale of {plateau.min_scale:g}",
        "step": f", factor {plateau.factor:g} every {optimizer.step_epochs} epochs",
    }[optimizer.schedule]
    seeds = f"seed {histories[0].seed}"
    if len(histories) > 1:
        num_finished = len(completed(histories))
        of = f" of the {num_finished} that finished" if num_finished < len(histories) else ""
        seeds = f"{len(histories)} seeds (mean and one standard deviation{of})"
    elif len(settings.run.seeds) > 1:
        seeds += f" (replica {histories[0].replica})"
    trained = f"{settings.schedule_name} on {settings.data.title}"
    return f"{trained}: {optimizer.optimizer} at {optimizer.learning_rate:g}{rule}, {seeds}"


def _make_panels(height: float, pad: float | None = None) -> Figure:
    """Make a figure of five panels, with ``pad`` points between a panel and its title."""
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(WIDTH, height), layout=engine)
    titles = ("LR scale", *map(" ".join, METRICS))
    for panel, text in zip(figure.subplots(1, 5), titles, strict=True):
        panel.set_title(text, pad=pad, fontsize=style.TITLE)
        panel.set_xlabel("epoch", fontsize=style.TICK)
    return figure


class _Line(NamedTuple):
    """A metric over the epochs, its best epoch, and how it is drawn."""

    curve: Curve
    best_epoch: int
    label: str
    look: Look

    @classmethod
    def of(cls, run: PlottedRun, split: str, metric: str) -> "_Line":
        """Read a loss or accuracy of the replicas that have not diverged."""
        histories, name = completed(run.histories), f"{split}_{metric}"
        epochs = range(1 + max(history.last_epoch for history in histories))
        values = [[getattr(record, name) for record in each.records] for each in histories]
        curve = Curve.of(epochs, values, is_single=run.is_single)
        best = int(curve.center.argmin() if metric == "loss" else curve.center.argmax())
        word = "lowest" if metric == "loss" else "highest"
        word += " mean" if len(histories) > 1 else ""
        label = f"{split}: {word} {curve.center[best]:.4f} at epoch {epochs[best]}"
        color, line = style.SPLIT_STYLES[split] if run.is_single else (run.color, run.linestyle)
        return cls(curve, epochs[best], label, {"color": color, "linestyle": line})


def _draw_metric(panel: Axes, lines: Sequence[_Line], drops: Sequence[float], metric: str) -> None:
    """Draw a panel, and if the first epochs flatten the curves, the later epochs in an inset.

    The values of the untrained network are so far from the others that the effect of a drop would
    not be visible. The inset is in the empty part: at the top for a loss, else at the bottom.
    """
    last_epoch = max(int(line.curve.epochs[-1]) for line in lines)
    _draw_lines(panel, lines)
    style.finish(panel, drops, 0, last_epoch)
    if last_epoch < 4:
        return
    start = max(1, last_epoch // 10)
    lines = [line._replace(curve=line.curve.since(start)) for line in lines]
    values = np.concatenate([array.ravel() for line in lines for array in line.curve[1:]])
    least, most = np.nanmin(values), np.nanmax(values)
    low, high = panel.get_ylim()
    is_loss = metric == "loss"
    if (most - low if is_loss else high - least) > 0.35 * (high - low):
        return
    bottom = 0.38 if is_loss else 0.13
    # The lines of the drops in the panel would cross the labels of the inset.
    look: Look = {"transform": panel.transAxes, "facecolor": "white", "zorder": 1}
    panel.add_patch(Rectangle((0.14, bottom - 0.1 if is_loss else 0.01), 0.87, 0.73, **look))
    inset = panel.inset_axes((0.29, bottom, 0.69, 0.51))
    _draw_lines(inset, lines)
    style.finish(inset, drops, start, last_epoch)
    margin = 0.06 * (most - least) or 0.01
    inset.set_ylim(least - margin, most + margin)
    inset.set_title(f"from epoch {start}", fontsize=10, loc="left", pad=3)
    inset.tick_params(labelsize=style.SMALL_TICK)


def _draw_lines(panel: Axes, lines: Sequence[_Line]) -> None:
    for curve, best_epoch, label, look in lines:
        # The bands of several runs overlap.
        curve.draw(panel, alpha=0.2 if len(curve.replicas) else 0.12, drawstyle="default", **look)
        best = curve.epochs == best_epoch
        panel.plot(curve.epochs[best], curve.center[best], label=label, **look, **style.BEST_MARKER)
