"""The panels over the epochs, of one run or of several runs."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from plateau_train.config import DECAYS, Metric, PanelName, Settings, Split, describe_span
from plateau_train.errors import ConfigError
from plateau_train.plots import PlottedRun
from plateau_train.plots.curves import Contents, Curve, Start, cut_start
from plateau_train.plots.rule import RULE_LABELS, Observations
from plateau_train.plots.scale import draw_scale, row_names
from plateau_train.plots.style import RUN_LINESTYLES, SPLIT_LINESTYLES, Look, Theme, fit_text
from plateau_train.run.history import History, completed, early_endings

WIDTH, HEIGHT = 4.0, 4.5  # of a panel in inches
MOST_COLUMNS = 5
MOST_BANDS = 6  # of standard deviations in a panel; more would cover each other

FEWEST_CUT = 5  # epochs of a run whose first ones may leave a panel


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
    theme.write_heading(figure, title(histories, settings, is_short=theme.is_brief))
    reasons = [drop.describe() for drop in drops]
    endings = early_endings(histories) if len(histories) == 1 else []
    end = "".join(ending.describe() for ending in endings)
    where = "events.jsonl lists all drops with their reasons"
    theme.write_reasons(figure, reasons, where, end)
    _draw_panels(figure, panels, contents, theme)
    return figure


def draw_comparison(runs: Sequence[PlottedRun], heading: str, theme: Theme) -> Figure:
    """Draw the panels with a curve for each run: the mean of its replicas, with its band."""
    styles = zip(runs, cycle(theme.run_colors), cycle(RUN_LINESTYLES), strict=False)
    runs = [run._replace(color=color, linestyle=line) for run, color, line in styles]
    contents = Contents(runs)
    if means := _describe_means(runs, theme):
        heading += f": {means}"
    figure, panels = _make_panels(contents, theme)
    _add_legend(figure, runs, theme.heading_text(heading), theme)
    _draw_panels(figure, panels, contents, theme)
    return figure


def title(histories: Sequence[History], settings: Settings, *, is_short: bool = False) -> str:
    """Return one line with the schedule, the data set, the optimizer, the rule and the seeds.

    A short one leaves out the optimizer, the rule, and a single seed.
    """
    plateau, optimizer = settings.plateau, settings.optimizer
    unit = "steps" if plateau.split == "train" else "epochs"
    window = f" x {plateau.accumulation_size} {unit}" if plateau.accumulation_size > 1 else ""
    window *= isinstance(plateau.patience, int)
    patience, cooldown = map(describe_span, (plateau.patience, plateau.cooldown))
    smoothing = "" if plateau.smooth == "none" else f", {plateau.smooth}"
    patience = f"patience {patience}{window}, cooldown {cooldown}{smoothing}"
    rule = {
        "plateau": f", factor {plateau.factor:g}, {patience}",
        "step": f", factor {plateau.factor:g} every {optimizer.step_epochs} epochs",
        **dict.fromkeys(DECAYS, f", down to a scale of {plateau.min_scale:g}"),
    }.get(optimizer.schedule, "")
    if optimizer.warmup_epochs:
        rule += f", warm-up {optimizer.warmup_epochs:g} epochs"
    seeds = f"seed {histories[0].seed}" + ", diverged" * histories[0].has_diverged
    if len(histories) > 1:
        num_finished = len(completed(histories))
        of = f" of the {num_finished} that finished" if num_finished < len(histories) else ""
        of += ", each up to its end" if early_endings(histories) else ""
        seeds = f"{len(histories)} seeds (mean and one standard deviation{of})"
    elif len(settings.run.seeds) > 1:
        seeds += f" (replica {histories[0].replica})"
    trained = f"{settings.schedule_name} on {settings.data.title}"
    if is_short:
        return f"{trained}, {seeds}" if len(histories) > 1 else trained
    return f"{trained}: {optimizer.optimizer} at {optimizer.learning_rate:g}{rule}, {seeds}"


def _describe_means(runs: Sequence[PlottedRun], theme: Theme) -> str:
    """Return what the curves and bands of runs with several seeds are."""
    num_means = sum(len(completed(run.histories)) > 1 for run in runs)
    if not num_means:
        return ""
    band = " and standard deviation" if num_means <= MOST_BANDS else ""
    metric, scale = f"mean{band} of the seeds", "geometric mean and range of the scale"
    panels = {*theme.options.panels}
    return "; ".join([metric] * bool(panels - {"scale"}) + [scale] * ("scale" in panels))


def _add_legend(figure: Figure, runs: Sequence[PlottedRun], heading: str, theme: Theme) -> None:
    """Add one legend for all panels, under the heading; the labels may hold any characters."""
    width, height = figure.get_size_inches()
    labels = [_legend_label(run, name) for run, name in zip(runs, row_names(runs), strict=True)]
    labels += ["best epoch"] if {*theme.options.panels} - {"scale"} else []
    longest = max(map(len, labels))
    fontsize, num_columns = theme.tick, 1
    for share in (1, 0.85, 0.7):  # a smaller font for more columns, if the legend is too high
        fontsize = min(share * theme.tick, 72 * (width - 0.5) / (0.62 * longest + 5.5))
        num_columns = max(1, int((width - 0.5) * 72 / (0.62 * longest + 5.5) / fontsize))
        if -(-len(labels) // num_columns) * 1.6 * fontsize / 72 < 0.2 * height:
            break
    num_columns = min(len(labels), num_columns)
    line: Look = {"linewidth": 1.3 * theme.line}
    handles = [Line2D([], [], color=run.color, linestyle=run.linestyle, **line) for run in runs]
    handles.append(Line2D([], [], color=theme.muted, linestyle="none", **theme.best_marker))
    look: Look = {"loc": "outside upper center", "frameon": False, "handlelength": 2.6}
    if heading:
        heading, size = fit_text(heading, width - 0.2, theme.heading)
        look |= {"title": heading, "title_fontsize": size}
    legend = figure.legend(
        handles[: len(labels)], labels, ncols=num_columns, fontsize=fontsize, **look
    )
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)
    legend.get_title().set_multialignment("center")
    if not theme.has_fixed_size:
        num_rows = -(-len(labels) // num_columns)
        figure.set_figheight(height + theme.row * num_rows)


def _legend_label(run: PlottedRun, row_name: str) -> str:
    """Return the label of a run, after the name of its row of drops if that is another."""
    num_seeds = len(completed(run.histories))
    seeds = f" ({num_seeds} seeds)" if num_seeds > 1 else ""
    return f"{row_name}: {run.label}{seeds}" if row_name != run.label else f"{run.label}{seeds}"


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


def _draw_panels(figure: Figure, panels: Sequence[Axes], contents: Contents, theme: Theme) -> None:
    """Draw each panel, and its title above its legends; the titles of a row are at one height."""
    names = theme.options.panels
    for panel, name in zip(panels, names, strict=True):
        _, draw = PANELS[name]
        draw(panel, contents, theme)
        panel.set_xlabel("epoch", fontsize=theme.label)
    heights = [_add_panel_legends(figure, panel, theme) for panel in panels]
    columns = theme.num_columns(panels[0])
    for start in range(0, len(panels), columns):
        highest = max(heights[start : start + columns])
        for panel, name in list(zip(panels, names, strict=True))[start : start + columns]:
            title, _ = PANELS[name]
            panel.set_title(title, pad=6 + 72 * highest, fontsize=theme.panel_title)
        if not theme.has_fixed_size:
            figure.set_figheight(figure.get_figheight() + highest)


def _add_panel_legends(figure: Figure, panel: Axes, theme: Theme) -> float:
    """Add a row for the rule above a panel, and one for each curve; return their height in inches.

    They are no wider than the panel.
    """
    entries = list(zip(*panel.get_legend_handles_labels(), strict=True))
    rule = [entry for entry in entries if entry[1] in RULE_LABELS]
    curves = [entry for entry in entries if entry[1] not in RULE_LABELS]
    height = 0.0
    for row in ([rule] if rule else []) + [[entry] for entry in reversed(curves)]:
        handles, labels = zip(*row, strict=True)
        num_characters = sum(map(len, labels))
        size = min(theme.tick, theme.panel_width(panel) / (0.58 * num_characters + 2.2 * len(row)))
        look: Look = {"ncols": len(row), "frameon": False, "fontsize": size, "handlelength": 1.3}
        look |= {"columnspacing": 1.0, "handletextpad": 0.4, "borderpad": 0, "borderaxespad": 0.3}
        above = panel.transAxes + ScaledTranslation(0, height, figure.dpi_scale_trans)
        look |= {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "bbox_transform": above}
        legend = Legend(panel, handles, labels, **look)
        for handle in legend.legend_handles:
            if isinstance(handle, Line2D):
                handle.set_markersize(max(handle.get_markersize(), 4 * theme.enlarged))
        panel.add_artist(legend)
        height += 1.5 * size / 72
    return height


class _Line(NamedTuple):
    """A metric on a split over the epochs, its best epoch, and how it is drawn."""

    split: str
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
        # After the first end of a replica, the mean is over others.
        shared = curve.center[: 1 + min(history.last_epoch for history in histories)]
        best = int(shared.argmin() if metric == "loss" else shared.argmax())
        word = "lowest" if metric == "loss" else "highest"
        word += " mean" if len(histories) > 1 else ""
        label = f"{word} {curve.center[best]:.4f} at epoch {best}"
        color, line = run.color, run.linestyle
        if run.is_single:
            color, line = theme.split_colors[split], SPLIT_LINESTYLES[split]
        return cls(split, curve, best, label, {"color": color, "linestyle": line})


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
    for name, curve, best_epoch, label, look in lines:
        # The bands of several runs overlap.
        curve.draw(panel, theme, alpha=0.2 if is_single else 0.12, drawstyle="default", **look)
        best = curve.epochs == best_epoch
        if is_single:
            look |= {"label": label if len(lines) == 1 else f"{name}: {label}"}
        panel.plot(curve.epochs[best], curve.center[best], **look, **theme.best_marker)
    rule = runs[0].settings.plateau
    is_watched = rule.metric == metric and rule.split in splits
    observations = Observations.of(runs) if is_watched else None
    if observations:
        observations.draw(panel, theme, theme.split_colors[rule.split], contents.last_epoch)
    theme.finish(panel, [drop.position for drop in contents.drops], contents.last_epoch)
    theme.use_few_ticks(panel)
    points = [(line.curve.epochs, row) for line in lines for row in line.curve.rows]
    if observations is not None:
        points += [(observations.epochs, row) for row in observations.rows]
    best = [float(line.curve.center[line.best_epoch]) for line in lines]
    start = Start("epoch 0", [float(line.curve.center[0]) for line in lines], best)
    num_epochs = max(int(line.curve.epochs[-1]) for line in lines)
    if num_epochs >= FEWEST_CUT:
        firsts = list(range(1 + max(1, num_epochs // 10)))
        cut_start(panel, points, firsts, start, theme, is_loss=metric == "loss")


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
