"""The pictures of a run: five panels over its epochs, and which classes are taken for which."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from plateau_train import config
from plateau_train.errors import ConfigError, RunError, StorageError
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.metrics import Drop, EpochRecord, read_drops, read_history

FORMATS = ("png", "svg", "pdf")

# So many classes are written into the cells of a confusion matrix, and along its sides.
MOST_NUMBERED, MOST_NAMED = 25, 120

# Okabe and Ito's colours, which the colour-blind tell apart; line styles differ as well.
STYLES = {"train": ("#0072B2", "-"), "test": ("#D55E00", "-"), "val": ("#009E73", "--")}


def plot_run(path: Path, output: Path | None = None) -> Path:
    """Draw a run's plot again, in the run or elsewhere, and return where it is.

    Reads ``config.toml``, ``metrics.jsonl`` and ``events.jsonl`` of the run and nothing else.
    """
    run = RunDirectory.open(path)
    settings = run.settings().config
    records = read_history(run.metrics)
    if not records:
        raise RunError(
            f"{run.metrics} is empty: no epoch was finished",
            hint=f"plateau-train resume {run} begins it again",
        )
    figure = draw(records, read_drops(run.events), settings)
    return place_figure(figure, run, run.plot, output)


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


def save_plot(
    path: Path, records: Sequence[EpochRecord], drops: Sequence[Drop], settings: config.Config
) -> None:
    """Draw a run into a PNG, SVG or PDF file, by the ending of its name."""
    save_figure(draw(records, drops, settings), path)


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


def draw(records: Sequence[EpochRecord], drops: Sequence[Drop], settings: config.Config) -> Figure:
    """Draw the five panels; ``records`` begin with epoch 0, the untrained network."""
    figure = Figure(figsize=(20, 4.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    axes: Sequence[Axes] = figure.subplots(1, 5)
    figure.suptitle(title(settings), fontsize=14)
    has_val = records[0].val_loss is not None
    pad = 42 if has_val else 26  # of a title, above a line of the legend for each curve
    axes[0].set_title("LR scale", pad=pad, fontsize=13)
    _draw_scale(axes[0], records, drops)
    for panel, (split, metric) in zip(
        axes[1:],
        (("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "accuracy")),
        strict=True,
    ):
        panel.set_title(f"{split} {metric}", pad=pad, fontsize=13)
        curves = [_Curve.of(records, split, metric)]
        if split == "test" and has_val:
            curves.append(_Curve.of(records, "val", metric))
        for curve in curves:
            _draw_curve(panel, curve, marked=True)
        # Above the panel, where it can lie on no curve.
        panel.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=11,
            handlelength=1.5, borderpad=0.2, labelspacing=0.2,
        )  # fmt: skip
        _draw_zoom(panel, curves, drops, upper=metric == "loss")
    for panel in axes:
        _finish(panel, drops, records[-1].epoch)
        panel.set_xlabel("epoch", fontsize=11)
    return figure


def title(settings: config.Config) -> str:
    """Say in a line what was trained, on what, under which rule."""
    plateau, data, optimizer = settings.plateau, settings.data, settings.optimizer
    unit = "steps" if plateau.split == "train" else "epochs"
    window = f" x {plateau.accumulation_size} {unit}" if plateau.accumulation_size > 1 else ""
    return (
        f"{plateau.mode} on {data_title(data)}: "
        f"{optimizer.optimizer} at {optimizer.learning_rate:g}, factor {plateau.factor:g}, "
        f"patience {plateau.patience}{window}, cooldown {plateau.cooldown}, "
        f"seed {settings.run.seed}"
    )


def data_title(settings: config.Data) -> str:
    """Name a data set so that the built-in one is taken for no other."""
    name = settings.dataset
    return f"{name} (built-in drawings, not Fashion-MNIST)" if name == "garments" else name


class _Curve(NamedTuple):
    """One metric of one split over the epochs, and where it is best."""

    split: str
    epochs: list[int]
    values: list[float]
    best_epoch: int
    label: str

    @classmethod
    def of(cls, records: Sequence[EpochRecord], split: str, metric: str) -> "_Curve":
        epochs = [record.epoch for record in records]
        values = [getattr(record, f"{split}_{metric}") for record in records]
        best = min(values) if metric == "loss" else max(values)
        epoch = epochs[values.index(best)]
        word = "min" if metric == "loss" else "max"
        return cls(split, epochs, values, epoch, f"{split}: {word} {best:.4f} at epoch {epoch}")


def _draw_curve(panel: Axes, curve: _Curve, *, marked: bool) -> None:
    """Draw a metric, and mark its best value where it lies on the curve."""
    color, style = STYLES[curve.split]
    panel.plot(curve.epochs, curve.values, color=color, linestyle=style, linewidth=1.5)
    if marked:
        best = curve.values[curve.epochs.index(curve.best_epoch)]
        panel.plot(
            [curve.best_epoch], [best], label=curve.label, color=color, linestyle=style,
            marker="o", markersize=6, markeredgecolor="white", zorder=4,
        )  # fmt: skip


def _draw_zoom(
    panel: Axes, curves: Sequence[_Curve], drops: Sequence[Drop], *, upper: bool
) -> None:
    """Show the later epochs larger in the empty part of a panel, if the first ones flatten them.

    The untrained network's values are so far off that what a drop does would not be seen.
    """
    last_epoch = curves[0].epochs[-1]
    if last_epoch < 4:
        return
    start = max(1, last_epoch // 10)
    later = [value for curve in curves for value in curve.values[start:]]
    low, high = panel.get_ylim()
    used = (max(later) - low if upper else high - min(later)) / (high - low)
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
    for curve in curves:
        rest = curve._replace(epochs=curve.epochs[start:], values=curve.values[start:])
        _draw_curve(inset, rest, marked=curve.best_epoch >= start)
    margin = 0.06 * (max(later) - min(later)) or 0.01
    inset.set_ylim(min(later) - margin, max(later) + margin)
    _finish(inset, [drop for drop in drops if drop.position >= start], last_epoch)
    inset.set_xlim(start - 0.03 * last_epoch, last_epoch * 1.03)
    inset.set_title(f"from epoch {start}", fontsize=10, loc="left", pad=3)
    inset.tick_params(labelsize=9)


def _draw_scale(panel: Axes, records: Sequence[EpochRecord], drops: Sequence[Drop]) -> None:
    """Draw the scale as steps that fall where the drops fell, inside an epoch or at its end."""
    positions = [records[0].epoch, *(drop.position for drop in drops), records[-1].epoch]
    scales = [1.0, *(drop.scale_after for drop in drops), records[-1].scale]
    # A scale that has become 0 in float32 has no place on a log axis: draw it at the edge.
    lowest = min(scale for scale in scales if scale > 0) / 1.5
    scales = [scale or lowest for scale in scales]
    panel.plot(positions, scales, color="black", drawstyle="steps-post")
    panel.set_yscale("log", base=2)
    panel.set_ylim(lowest, 1.5)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _finish(panel: Axes, drops: Sequence[Drop], last_epoch: int) -> None:
    """Draw the drops through a panel, and lay out its axis of epochs."""
    for drop in drops:
        panel.axvline(drop.position, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
    margin = 0.03 * last_epoch or 0.1  # room for a marker on the first and on the last epoch
    panel.set_xlim(-margin, last_epoch + margin)
    panel.tick_params(labelsize=11)
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def draw_confusion(
    confusion: Int32[np.ndarray, "classes classes"], class_names: Sequence[str], heading: str
) -> Figure:
    """Draw how often each class, a row each, is taken for each class, a column each.

    The colour is the share of the row's images, on a scale that shows small shares too. The
    numbers are images, and stand where they can be read.
    """
    num_classes = len(class_names)
    numbered = num_classes <= MOST_NUMBERED
    # The sides of the matrix in inches, and how much larger than usual its texts are to be.
    side = np.clip(0.62 * num_classes, 3.4, 3.1 + 0.31 * num_classes)
    side = side if numbered else np.clip(0.13 * num_classes, 8, 13)
    enlarged = max(1, side / 8)
    figure = Figure(figsize=(side + 3, side + 1.8), layout="constrained")
    panel = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(0.5, 0, 1)
    image = panel.imshow(shares, cmap="Blues", norm=norm)
    if numbered:
        fontsize = min(16, 18 * side / num_classes)
        for (row, column), count in np.ndenumerate(confusion):
            if count > 0:
                panel.text(
                    column, row, f"{count:,}", ha="center", va="center", fontsize=fontsize,
                    color="white" if norm(shares[row, column]) > 0.6 else "black",
                )  # fmt: skip
    if num_classes <= MOST_NAMED:
        fontsize = 11 if numbered else 60 * side / num_classes
        _name_classes(panel, class_names, fontsize=fontsize)
    panel.set_xlabel("taken for", fontsize=12 * enlarged)
    panel.set_ylabel("true class", fontsize=12 * enlarged)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panel, shrink=0.8, fraction=0.05, pad=0.02, aspect=25)
    bar.set_label("share of the true class", fontsize=11 * enlarged)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.ax.tick_params(labelsize=10 * enlarged)
    bar.outline.set_visible(False)
    # Smaller for a run with a very long name.
    longest = max(map(len, heading.splitlines()))
    fontsize = min(13 * enlarged, 72 * (side + 3) / (0.6 * longest))
    figure.suptitle(heading, fontsize=fontsize, parse_math=False)
    return figure


def _name_classes(panel: Axes, class_names: Sequence[str], *, fontsize: float) -> None:
    """Write the names of the classes along both axes; one of a data set's may be very long."""
    names = [
        name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}" for name in class_names
    ]
    many = len(names) > MOST_NUMBERED
    places = range(len(names))
    panel.set_yticks(places, names, fontsize=fontsize, parse_math=False)
    panel.set_xticks(
        places, names, fontsize=fontsize, parse_math=False, rotation=90 if many else 40,
        ha="center" if many else "right", rotation_mode="default" if many else "anchor",
    )  # fmt: skip
