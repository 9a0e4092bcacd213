"""The five panels over the epochs of a run, of one training or of replicas, and of many runs."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from plateau_train import config
from plateau_train.errors import ConfigError, StorageError
from plateau_train.plots.scale import Drawn, draw_scale, finish, list_reasons, number_drops
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import completed, find_replica, read_histories
from plateau_train.run.records import Drop, History

FORMATS = ("png", "svg", "pdf")

PANELS = (("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "accuracy"))

# The size of the panels together, and of a line of text under or above them, in inches.
WIDTH, HEIGHT, LINE = 20, 4.5, 0.18

# Okabe and Ito's colours, which the colour-blind tell apart; line styles differ as well.
STYLES = {"train": ("#0072B2", "-"), "test": ("#D55E00", "-"), "val": ("#009E73", "--")}
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
RUN_STYLES = ("-", "--", "-.", (0, (1, 1)))


def plot_run(path: Path, output: Path | None = None, replica: int | None = None) -> Path:
    """Draw a run's plot again, in the run or elsewhere, and return where it is.

    ``replica`` draws that one as if it were alone. Raises ``ConfigError`` where there is none.
    """
    run = RunDirectory.open(path)
    settings = run.settings().settings
    histories = read_histories(run)
    place = run.plot
    if replica is not None:
        histories = [find_replica(histories, replica, run)]
        place = run.path / f"plot-replica-{replica}.png"
    return place_figure(draw(histories, settings), run, place, output)


def place_figure(figure: Figure, run: RunDirectory, path: Path, output: Path | None) -> Path:
    """Write a picture to where it is asked for, or to its path in the run; return where it is.

    A run that cannot be written to leaves it in the working directory, under the run's name.
    """
    if output is not None:
        save_figure(figure, output)
        return output
    try:
        save_figure(figure, path)
    except StorageError:
        path = Path(f"{run.path.resolve().name}-{path.name}")
        save_figure(figure, path)
    return path


def save_plot(path: Path, histories: Sequence[History], settings: config.Settings) -> None:
    """Draw a run into a PNG, SVG or PDF file, by the ending of its name."""
    save_figure(draw(histories, settings), path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture as PNG, SVG or PDF, by the ending of its file's name."""
    kind = picture_format(path)
    # No date and no random names inside, so that equal runs give equal files.
    metadata: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "plateau-train"}), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(picture, format=kind, dpi=150, metadata=metadata[kind])
    storage.write_bytes(path, picture.getbuffer())


def picture_format(path: Path) -> str:
    """Tell a picture's format by the ending of its name; raises ``ConfigError`` for others."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ConfigError(
            f"a plot cannot be written as {path.name}",
            hint=f"end the name in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}",
        )
    return kind


def draw(histories: Sequence[History], settings: config.Settings) -> Figure:
    """Draw the five panels of a run; the records begin with epoch 0, the untrained network.

    Of one training with its drops and their reasons, of several as means with bands of one
    standard deviation, each training a thin line.
    """
    drops = histories[0].drops if len(histories) == 1 else ()
    reasons = list_reasons(drops)
    figure, axes = _make_panels(len(reasons))
    heading = title(histories, settings)
    figure.suptitle(heading, fontsize=_fitting(heading))
    for line, reason in enumerate(reasons):
        figure.text(
            0.03, LINE * (len(reasons) - line - 0.4) / figure.get_figheight(), reason,
            fontsize=9, color="#333333", parse_math=False,
        )  # fmt: skip
    has_val = histories[0].records[0].val_loss is not None
    pad = 42 if has_val else 26  # of a title, above a line of the legend for each curve
    axes[0].set_title("LR scale", pad=pad, fontsize=13)
    draw_scale(axes[0], [Drawn(settings, histories)])
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(**_above())
    number_drops(axes[0], drops)
    for panel, (split, metric) in zip(axes[1:], PANELS, strict=True):
        panel.set_title(f"{split} {metric}", pad=pad, fontsize=13)
        splits = [split, "val"] if split == "test" and has_val else [split]
        curves = [_Curve.of(histories, name, metric, *STYLES[name]) for name in splits]
        _draw_curves(panel, curves, drops, upper=metric == "loss")
        panel.legend(**_above())
    return figure


def draw_together(runs: Sequence[Drawn], heading: str) -> Figure:
    """Draw the five panels with a curve a run, of replicas their mean and band.

    The accuracy and loss on held-out images, which not all runs have, are in each run's own plot.
    """
    runs = [
        run._replace(
            color=RUN_COLORS[number % len(RUN_COLORS)], style=RUN_STYLES[number % len(RUN_STYLES)]
        )
        for number, run in enumerate(runs)
    ]
    handles = [
        Line2D([], [], color=run.color, linestyle=run.style, linewidth=2, marker="o")
        for run in runs
    ]
    widest = max(len(run.label) for run in runs) * 0.095 + 0.9
    columns = min(len(runs), max(1, int((WIDTH - 1) / widest)))
    figure, axes = _make_panels(0, num_lines_above=-(-len(runs) // columns))
    legend = figure.legend(
        handles, [str(number) for number in range(len(runs))], title=heading,
        title_fontsize=_fitting(heading),
        loc="outside upper center", ncols=columns, frameon=False, fontsize=11, handlelength=3,
    )  # fmt: skip
    legend.get_title().set_parse_math(False)
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a name may hold anything
        text.set_text(run.label)
    axes[0].set_title("LR scale", fontsize=13)
    draw_scale(axes[0], runs)
    for panel, (split, metric) in zip(axes[1:], PANELS, strict=True):
        panel.set_title(f"{split} {metric}", fontsize=13)
        curves = [
            _Curve.of(run.histories, split, metric, run.color, run.style)._replace(replicas=[])
            for run in runs
        ]
        _draw_curves(panel, curves, (), upper=metric == "loss")
    return figure


def title(histories: Sequence[History], settings: config.Settings) -> str:
    """Say in a line what was trained, on what, under which rule."""
    plateau, data, optimizer = settings.plateau, settings.data, settings.optimizer
    unit = "steps" if plateau.split == "train" else "epochs"
    window = f" x {plateau.accumulation_size} {unit}" if plateau.accumulation_size > 1 else ""
    rule = {
        "plateau": f"factor {plateau.factor:g}, patience {plateau.patience}{window}, "
        f"cooldown {plateau.cooldown}",
        "constant": "",
        "cosine": f"down to a scale of {plateau.min_scale:g}",
        "step": f"factor {plateau.factor:g} every {optimizer.step_epochs} epochs",
    }[optimizer.schedule]
    seeds = f"seed {histories[0].seed}"
    if len(histories) > 1:
        seeds = f"{len(histories)} seeds (mean and one standard deviation)"
        if early := len(histories) - len(completed(histories)):
            seeds += f", without {early} that ended early"
    elif len(settings.run.seeds) > 1:
        seeds += f" (replica {histories[0].replica})"
    parts = [f"{optimizer.optimizer} at {optimizer.learning_rate:g}", rule, seeds]
    return f"{settings.schedule_name} on {data_title(data)}: {', '.join(filter(None, parts))}"


def data_title(settings: config.DataSettings) -> str:
    """Name a data set so that the built-in one is taken for no other."""
    name = settings.dataset
    return f"{name} (built-in drawings, not Fashion-MNIST)" if name == "garments" else name


def _make_panels(num_lines: int, *, num_lines_above: int = 0) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure of five panels, with room for so many lines of text under and above them."""
    below = LINE * (num_lines + 1) if num_lines else 0
    height = HEIGHT + below + LINE * num_lines_above
    rect = (0, below / height, 1, 1 - below / height)
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, rect=rect)
    figure = Figure(figsize=(WIDTH, height), layout=engine)
    axes: Sequence[Axes] = figure.subplots(1, 5)
    for panel in axes:
        panel.set_xlabel("epoch", fontsize=11)
    return figure, axes


def _fitting(heading: str) -> float:
    """Choose the size of a heading, smaller for one that would be wider than the panels."""
    return min(14, 72 * WIDTH / (0.6 * len(heading)))


def _above() -> dict[str, Any]:
    """Place a legend above its panel, where it can lie on no curve."""
    return {
        "loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False, "fontsize": 11,
        "borderpad": 0.2, "labelspacing": 0.2, "handlelength": 1.5,
    }  # fmt: skip


class _Curve(NamedTuple):
    """One metric of one split over the epochs, of replicas the mean, and where it is best."""

    epochs: list[int]
    values: Float64[np.ndarray, " epochs"]
    spread: Float64[np.ndarray, " epochs"]  # one standard deviation; 0 for a single training
    replicas: Sequence[Float64[np.ndarray, " epochs"]]
    best_epoch: int
    label: str
    color: str
    style: Any

    @classmethod
    def of(
        cls, histories: Sequence[History], split: str, metric: str, color: str, style: Any
    ) -> "_Curve":
        whole = completed(histories)
        epochs = [record.epoch for record in whole[0].records]
        replicas = np.array(
            [[getattr(record, f"{split}_{metric}") for record in each.records] for each in whole]
        )
        values = replicas.mean(axis=0)
        spread = replicas.std(axis=0, ddof=1) if len(whole) > 1 else np.zeros_like(values)
        best = int(values.argmin() if metric == "loss" else values.argmax())
        word = ("min" if metric == "loss" else "max") + (" of mean" if len(whole) > 1 else "")
        label = f"{split}: {word} {values[best]:.4f} at epoch {epochs[best]}"
        thin = list(replicas) if len(whole) > 1 else []
        return cls(epochs, values, spread, thin, epochs[best], label, color, style)

    def since(self, start: int) -> "_Curve":
        """Leave out the epochs before one."""
        return self._replace(
            epochs=self.epochs[start:],
            values=self.values[start:],
            spread=self.spread[start:],
            replicas=[replica[start:] for replica in self.replicas],
        )


def _draw_curve(panel: Axes, curve: _Curve) -> None:
    """Draw a metric with its band, and mark its best value where it lies on the curve."""
    color, style = curve.color, curve.style
    panel.plot(curve.epochs, curve.values, color=color, linestyle=style, linewidth=1.5, zorder=3)
    if curve.best_epoch in curve.epochs:
        best = curve.values[curve.epochs.index(curve.best_epoch)]
        panel.plot(
            [curve.best_epoch], [best], label=curve.label, color=color, linestyle=style,
            marker="o", markersize=6, markeredgecolor="white", zorder=4,
        )  # fmt: skip
    for replica in curve.replicas:
        panel.plot(curve.epochs, replica, color=color, linewidth=0.6, alpha=0.35)
    if curve.spread.any():
        low, high = curve.values - curve.spread, curve.values + curve.spread
        alpha = 0.2 if curve.replicas else 0.12  # of many runs, whose bands lie on each other
        panel.fill_between(curve.epochs, low, high, color=color, alpha=alpha, linewidth=0)


def _draw_curves(
    panel: Axes, curves: Sequence[_Curve], drops: Sequence[Drop], *, upper: bool
) -> None:
    """Draw metrics, and the later epochs larger in the empty part, if the first flatten them.

    The untrained network's values are so far off that what a drop does would not be seen.
    """
    for curve in curves:
        _draw_curve(panel, curve)
    last_epoch = max(curve.epochs[-1] for curve in curves)
    finish(panel, drops, last_epoch)
    if last_epoch < 4:
        return
    start = max(1, last_epoch // 10)
    rests = [curve.since(start) for curve in curves if curve.epochs[-1] >= start]
    edges = [edge for rest in rests for edge in (rest.values - rest.spread, *rest.replicas)]
    edges += [rest.values + rest.spread for rest in rests]
    least, most = min(edge.min() for edge in edges), max(edge.max() for edge in edges)
    low, high = panel.get_ylim()
    used = (most - low if upper else high - least) / (high - low)
    if used > 0.35:
        return
    left, bottom, width, height = 0.29, 0.38 if upper else 0.13, 0.69, 0.51
    # The panel's own drop lines would run through the labels of the inset.
    background = Rectangle(
        (left - 0.15, bottom - 0.1 if upper else 0.01), width + 0.18, height + 0.22,
        transform=panel.transAxes, facecolor="white", zorder=1,
    )  # fmt: skip
    panel.add_patch(background)
    inset = panel.inset_axes((left, bottom, width, height))
    for rest in rests:
        _draw_curve(inset, rest)
    margin = 0.06 * (most - least) or 0.01
    inset.set_ylim(least - margin, most + margin)
    finish(inset, [drop for drop in drops if drop.position >= start], last_epoch)
    inset.set_xlim(start - 0.03 * last_epoch, last_epoch * 1.03)
    inset.set_title(f"from epoch {start}", fontsize=10, loc="left", pad=3)
    inset.tick_params(labelsize=9)
