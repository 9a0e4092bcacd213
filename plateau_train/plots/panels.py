"""The panels over the epochs, of one run or of several runs."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from plateau_train.config import Metric, PanelName, Settings, Split
from plateau_train.errors import ConfigError
from plateau_train.plots import PlottedRun
from plateau_train.plots.rule import RULE_LABELS, Observations
from plateau_train.plots.scale import draw_scale
from plateau_train.plots.style import (
    RUN_LINESTYLES,
    SPLIT_LINESTYLES,
    Contents,
    Curve,
    Look,
    Theme,
    fit_text,
)
from plateau_train.run.history import History, completed

WIDTH, HEIGHT = 4.0, 4.5  # of a panel in inches
MOST_COLUMNS = 5
MOST_BANDS = 6  # of standard deviations in a panel; more would cover each other

# How much of the range of a panel the trained epochs fill at least, so that epoch 0 is shown.
LEAST_SHARE = 0.35


def draw_run(histories: Sequence[History], settings: Settings, theme: Theme) -> Figure:
    """Draw the panels of a run; the records begin with epoch 0, the untrained network.

    The curves are means over replicas with bands of one standard deviation, and each replica is a
    thin line. The drops of a single replica are numbered, and their reasons are listed below. The
    panel of the metric that its rule observes shows the observations and the threshold.
    """
    run = PlottedRun(settings, histories, color=theme.ink, is_single=True)
    drops = histories[0].drops if len(histories) == 1 else ()
    contents = Contents([run], drops)
    figure, panels = _make_panels(contents, theme)
    theme.write_heading(figure, title(histories, settings))
    more = " drops; events.jsonl lists them with their reasons"
    theme.write_reasons(figure, [drop.describe() for drop in drops], more)
    _draw_panels(panels, contents, theme)
    return figure


def draw_comparison(runs: Sequence[PlottedRun], heading: str, theme: Theme) -> Figure:
    """Draw the panels with a curve for each run: the mean of its replicas, with its band."""
    styles = zip(runs, cycle(theme.run_colors), cycle(RUN_LINESTYLES), strict=False)
    runs = [run._replace(color=color, linestyle=line) for run, color, line in styles]
    several = [run for run in runs if len(completed(run.histories)) > 1]
    if several:
        band = " and standard deviation" if len(several) <= MOST_BANDS else ""
        heading += f": mean{band} of the seeds; geometric mean and range of the scale"
    contents = Contents(runs)
    figure, panels = _make_panels(contents, theme)
    _add_legend(figure, runs, theme.heading_text(heading), theme)
    _draw_panels(panels, contents, theme)
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


def _add_legend(figure: Figure, runs: Sequence[PlottedRun], heading: str, theme: Theme) -> None:
    """Add one legend for all panels, under the heading; the labels may hold any characters."""
    width = figure.get_figwidth()
    longest = max(len(run.label) for run in runs)
    column_width = (longest * 0.62 + 5.5) * theme.tick / 72  # inches
    num_columns = min(len(runs) + 1, max(1, int((width - 0.5) / column_width)))
    line: Look = {"linewidth": 1.3 * theme.line}
    handles = [Line2D([], [], color=run.color, linestyle=run.linestyle, **line) for run in runs]
    handles.append(Line2D([], [], color=theme.muted, linestyle="none", **theme.best_marker))
    labels = [*(run.label for run in runs), "lowest loss or highest accuracy"]
    look: Look = {"loc": "outside upper center", "frameon": False, "handlelength": 2.6}
    if heading:
        heading, size = fit_text(heading, width - 0.2, theme.heading)
        look |= {"title": heading, "title_fontsize": size}
    fontsize = min(theme.tick, 72 * width / (0.62 * longest + 6))
    legend = figure.legend(handles, labels, ncols=num_columns, fontsize=fontsize, **look)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)
    legend.get_title().set_multialignment("center")
    if not theme.has_fixed_size:
        num_rows = -(-len(handles) // num_columns)
        figure.set_figheight(figure.get_figheight() + theme.row * num_rows)


def _make_panels(contents: Contents, theme: Theme) -> tuple[Figure, list[Axes]]:
    """Make a figure with an empty panel for each name in the options."""
    names = theme.options.panels
    if not contents.has_val and (missing := [name for name in names if name.startswith("val")]):
        hint = "train with --val-fraction 0.1, or choose other panels"
        whose = "the run" if len(contents.runs) == 1 else "one of the runs"
        raise ConfigError(f"{whose} held out no images for {' and '.join(missing)}", hint=hint)
    columns = len(names) if len(names) <= MOST_COLUMNS else -(-len(names) // 2)
    width = WIDTH * columns + 3 / columns * (columns < 3)
    figure = theme.new_figure(width, HEIGHT * -(-len(names) // columns), w_pad=0.12, h_pad=0.08)
    if theme.has_fixed_size:
        columns = _choose_columns(len(names), *figure.get_size_inches())
    rows = -(-len(names) // columns)
    panels = theme.add_panels(figure, rows, columns)
    for empty in panels[len(names) :]:
        empty.remove()
    return figure, panels[: len(names)]


def _choose_columns(num_panels: int, width: float, height: float) -> int:
    """Return the number of columns whose panels are a little wider than high, with no gaps."""

    def penalty(columns: int) -> float:
        rows = -(-num_panels // columns)
        shape = abs(math.log(width / columns * rows / height / 1.2))
        return shape + 0.35 * (rows * columns - num_panels)

    return min(range(1, num_panels + 1), key=penalty)


def _draw_panels(panels: Sequence[Axes], contents: Contents, theme: Theme) -> None:
    """Draw each panel, and its title above its legend; all titles are at one height."""
    for panel, name in zip(panels, theme.options.panels, strict=True):
        _, draw = PANELS[name]
        draw(panel, contents, theme)
        panel.set_xlabel("epoch", fontsize=theme.label)
    legends = [_add_panel_legend(panel, theme) for panel in panels]
    pad = 6 + max(legends) * theme.row * 72
    for panel, name in zip(panels, theme.options.panels, strict=True):
        panel.set_title(PANELS[name][0], pad=pad, fontsize=theme.panel_title)


def _add_panel_legend(panel: Axes, theme: Theme) -> int:
    """Add the legends above a panel: one row for the rule, and one for each curve; count them."""
    entries = list(zip(*panel.get_legend_handles_labels(), strict=True))
    rule = [entry for entry in entries if entry[1] in RULE_LABELS]
    curves = [entry for entry in entries if entry[1] not in RULE_LABELS]
    layout: Any = panel.get_subplotspec()
    width = layout.get_gridspec().figure.get_figwidth() / layout.get_gridspec().ncols - 0.4
    num_rows = 0
    for group, num_columns in ((rule, len(rule)), (curves, 1)):
        if not group:
            continue
        num_characters = max(len(label) for _, label in group)
        if num_columns > 1:
            num_characters = sum(len(label) + 2 for _, label in group)
        size = min(theme.tick, width * 72 / (0.56 * num_characters + 2.5 * num_columns))
        look: Look = {"frameon": False, "borderpad": 0.1, "labelspacing": 0.2, "handlelength": 1.4}
        look |= {"columnspacing": 1.0, "handletextpad": 0.5, "borderaxespad": 0.2}
        above = ScaledTranslation(0, num_rows * theme.row, panel.figure.dpi_scale_trans)
        look |= {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "fontsize": size}
        handles, labels = zip(*group, strict=True)
        legend = Legend(
            panel,
            handles,
            labels,
            ncols=num_columns,
            bbox_transform=panel.transAxes + above,
            **look,
        )
        panel.add_artist(legend)
        num_rows += len(group) // num_columns
    return num_rows


class _Line(NamedTuple):
    """A metric over the epochs, its best epoch, and how it is drawn."""

    curve: Curve
    best_epoch: int
    label: str
    look: Look

    @classmethod
    def of(cls, run: PlottedRun, split: str, metric: str, theme: Theme) -> "_Line":
        """Read a loss or accuracy of the replicas that have not diverged."""
        histories, name = completed(run.histories), f"{split}_{metric}"
        epochs = range(1 + max(history.last_epoch for history in histories))
        values = [[getattr(record, name) for record in each.records] for each in histories]
        curve = Curve.of(epochs, values, is_single=run.is_single)
        best = int(curve.center.argmin() if metric == "loss" else curve.center.argmax())
        word = "lowest" if metric == "loss" else "highest"
        word += " mean" if len(histories) > 1 else ""
        label = f"{split}: {word} {curve.center[best]:.4f} at epoch {epochs[best]}"
        color, line = run.color, run.linestyle
        if run.is_single:
            color, line = theme.split_colors[split], SPLIT_LINESTYLES[split]
        return cls(curve, epochs[best], label, {"color": color, "linestyle": line})


def draw_metric(
    panel: Axes, contents: Contents, theme: Theme, *, split: Split, metric: Metric
) -> None:
    """Draw a loss or an accuracy of a split.

    The panel of a metric on the test images of a single run shows the held-out images as well, if
    they have no panel.
    """
    runs, is_single = contents.runs, contents.runs[0].is_single
    splits = [split]
    if split == "test" and is_single and contents.has_val:
        splits += ["val"] if f"val-{metric}" not in theme.options.panels else []
    lines = [_Line.of(run, name, metric, theme) for name in splits for run in runs]
    if sum(not np.array_equal(line.curve.low, line.curve.high) for line in lines) > MOST_BANDS:
        lines = [line._replace(curve=line.curve.without_band()) for line in lines]
    for curve, best_epoch, label, look in lines:
        # The bands of several runs overlap.
        curve.draw(panel, theme, alpha=0.2 if is_single else 0.12, drawstyle="default", **look)
        best = curve.epochs == best_epoch
        look |= {"label": label} if is_single else {}
        panel.plot(curve.epochs[best], curve.center[best], **look, **theme.best_marker)
    rule = runs[0].settings.plateau
    is_watched = rule.metric == metric and rule.split in splits
    if is_watched and (observations := Observations.of(runs)):
        observations.draw(panel, theme, theme.split_colors[rule.split], contents.last_epoch)
    theme.finish(panel, [drop.position for drop in contents.drops], contents.last_epoch)
    _show_trained(panel, [line.curve for line in lines], theme, is_loss=metric == "loss")


def _show_trained(panel: Axes, curves: Sequence[Curve], theme: Theme, *, is_loss: bool) -> None:
    """Limit the vertical axis to the trained epochs, if epoch 0 would flatten them.

    The first 2 % of the epochs may leave the panel as well. The value of epoch 0 is written at the
    edge that the curves leave through.
    """
    last_epoch = max(int(curve.epochs[-1]) for curve in curves)
    first = max(1, last_epoch // 50)
    values = [np.array(curve[1:4])[:, curve.epochs >= first] for curve in curves]
    values += [curve.replicas[:, curve.epochs >= first] for curve in curves]
    trained = np.concatenate([array.ravel() for array in values])
    if last_epoch < 2:
        return
    least, most = float(np.nanmin(trained)), float(np.nanmax(trained))
    start = [float(curve.center[0]) for curve in curves]
    outside = max(start) > most if is_loss else min(start) < least
    whole = max(start) - least if is_loss else most - min(start)
    if not outside or most - least > LEAST_SHARE * whole:
        return
    margin = 0.07 * (most - least) or 0.01 * abs(most) or 0.01
    panel.set_ylim(least - margin, most + margin)
    low, high = (f"{value:.3g}" for value in (min(start), max(start)))
    text = f"epoch 0: {low}" + (f" to {high}" if high != low else "")
    arrow = "\N{UPWARDS ARROW}" if is_loss else "\N{DOWNWARDS ARROW}"
    look: Look = {"transform": panel.transAxes, "fontsize": theme.tick * 0.9, "color": theme.muted}
    look |= {"va": "top" if is_loss else "bottom", "zorder": 5}
    panel.text(0.09, 0.985 if is_loss else 0.02, f"{arrow} {text}", **look)


# The title of each panel, and the function that draws it.
PANELS: dict[PanelName, tuple[str, Callable[[Axes, Contents, Theme], None]]] = {
    "scale": ("LR scale", draw_scale),
    "train-loss": ("train loss", partial(draw_metric, split="train", metric="loss")),
    "train-accuracy": ("train accuracy", partial(draw_metric, split="train", metric="accuracy")),
    "test-loss": ("test loss", partial(draw_metric, split="test", metric="loss")),
    "test-accuracy": ("test accuracy", partial(draw_metric, split="test", metric="accuracy")),
    "val-loss": ("val loss", partial(draw_metric, split="val", metric="loss")),
    "val-accuracy": ("val accuracy", partial(draw_metric, split="val", metric="accuracy")),
}
