"""The five panels of a run: scale, losses and accuracies over the epochs."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from plateau_train import config
from plateau_train.errors import ConfigError
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.metrics import Drop, EpochRecord, read_drops, read_history

FORMATS = ("png", "svg", "pdf")

# Okabe and Ito's colours, which the colour-blind tell apart; line styles differ as well.
STYLES = {"train": ("#0072B2", "-"), "test": ("#D55E00", "-"), "val": ("#009E73", "--")}


def plot_run(path: Path, output: Path | None = None) -> Path:
    """Draw a run's plot again, in the run or elsewhere, and return where it is.

    Reads ``config.toml``, ``metrics.jsonl`` and ``events.jsonl`` of the run and nothing else.
    """
    run = RunDirectory.open(path)
    settings = run.settings().config
    records = read_history(run.metrics)
    output = output or run.plot
    save_plot(output, records, read_drops(run.events), settings)
    return output


def save_plot(
    path: Path, records: Sequence[EpochRecord], drops: Sequence[Drop], settings: config.Config
) -> None:
    """Draw a run into a PNG, SVG or PDF file, by the ending of its name."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ConfigError(
            f"a plot cannot be written as {path.name}",
            hint=f"end the name in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}",
        )
    figure = draw(records, drops, settings)
    # No date and no random names inside, so that equal runs give equal files.
    metadata: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "plateau-train"}):
        figure.savefig(picture, format=kind, dpi=150, metadata=metadata[kind])
    storage.write_bytes(path, picture.getbuffer())


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
        f"{plateau.mode} on {data.dataset}"
        f"{' (built-in drawings, not Fashion-MNIST)' if data.dataset == 'garments' else ''}: "
        f"{optimizer.optimizer} at {optimizer.learning_rate:g}, factor {plateau.factor:g}, "
        f"patience {plateau.patience}{window}, cooldown {plateau.cooldown}, "
        f"seed {settings.run.seed}"
    )


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
