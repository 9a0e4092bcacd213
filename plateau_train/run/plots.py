"""The five panels of a run: scale, losses and accuracies over the epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from plateau_train import config
from plateau_train.errors import ConfigError, RunError
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.metrics import EPOCHS, Drop, EpochRecord, read_drops, read_records

FORMATS = ("png", "svg", "pdf")

# Okabe and Ito's colours, which the colour-blind tell apart; line styles differ as well.
TRAIN, TEST, VAL, SCALE, DROP = "#0072B2", "#D55E00", "#009E73", "#333333", "#999999"


def plot_run(path: Path, output: Path | None = None) -> Path:
    """Draw a run's plot again, in the run or elsewhere, and return where it is.

    Reads ``config.toml``, ``metrics.jsonl`` and ``events.jsonl`` of the run and nothing else.
    """
    run = RunDirectory.open(path)
    settings = config.resolve({}, file=run.config).config
    records = read_records(run.metrics, EPOCHS)
    if not records:
        raise RunError(
            f"{run.metrics} is empty: no epoch was finished", hint="train it, then plot it"
        )
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
            hint=f"end the name in .{', .'.join(FORMATS)}",
        )
    figure = draw(records, drops, settings)
    # No date, so that equal runs give equal files.
    metadata: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with storage.replacing(path) as file:
        figure.savefig(file, format=kind, dpi=100, metadata=metadata[kind])


def draw(records: Sequence[EpochRecord], drops: Sequence[Drop], settings: config.Config) -> Figure:
    """Draw the five panels; ``records`` begin with epoch 0, the untrained network."""
    figure = Figure(figsize=(20, 4.5), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 5)
    figure.suptitle(title(settings), fontsize=12)
    epochs = [record.epoch for record in records]

    _draw_scale(axes[0], records, drops)
    for panel, (split, metric) in zip(
        axes[1:],
        (("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "accuracy")),
        strict=True,
    ):
        panel.set_title(f"{split} {metric}")
        values = [getattr(record, f"{split}_{metric}") for record in records]
        best = min if metric == "loss" else max
        _draw_curve(panel, epochs, values, TRAIN if split == "train" else TEST, split, best)
        if split == "test" and records[0].val_loss is not None:
            values = [getattr(record, f"val_{metric}") for record in records]
            _draw_curve(panel, epochs, values, VAL, "val", best, style="--")
        panel.legend(loc="upper right" if metric == "loss" else "lower right", fontsize=9)
    for panel in axes:
        for drop in drops:
            panel.axvline(drop.position, color=DROP, linewidth=0.8, linestyle=":", zorder=0)
        panel.set_xlabel("epoch")
        panel.set_xlim(*_margins(epochs[-1]))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def title(settings: config.Config) -> str:
    """Say in a line what was trained, on what, under which rule."""
    plateau, data, optimizer = settings.plateau, settings.data, settings.optimizer
    unit = "steps" if plateau.split == "train" else "epochs"
    window = f" of {plateau.accumulation_size} {unit}" if plateau.accumulation_size > 1 else ""
    return (
        f"{plateau.mode} on {data.dataset}"
        f"{' (built-in drawings, not Fashion-MNIST)' if data.dataset == 'garments' else ''}: "
        f"{optimizer.optimizer} at {optimizer.learning_rate:g}, factor {plateau.factor:g}, "
        f"patience {plateau.patience}{window}, cooldown {plateau.cooldown}, "
        f"seed {settings.run.seed}"
    )


def _draw_scale(panel: Axes, records: Sequence[EpochRecord], drops: Sequence[Drop]) -> None:
    """Draw the scale as steps that fall where the drops fell, inside an epoch or at its end."""
    positions = [records[0].epoch, *(drop.position for drop in drops), records[-1].epoch]
    scales = [1.0, *(drop.scale_after for drop in drops), records[-1].scale]
    panel.plot(positions, scales, color=SCALE, drawstyle="steps-post")
    panel.set_title("LR scale")
    panel.set_yscale("log", base=2)
    lowest = min(scales)
    panel.set_ylim(lowest / 1.5, 1.5)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _draw_curve(
    panel: Axes,
    epochs: Sequence[int],
    values: Sequence[float],
    color: str,
    split: str,
    best: Any,
    *,
    style: str = "-",
) -> None:
    """Draw one metric, and mark its best value where it lies on the curve."""
    panel.plot(epochs, values, color=color, linestyle=style, linewidth=1.5)
    value = best(values)
    epoch = epochs[values.index(value)]
    label = f"{split}: {'min' if best is min else 'max'} {value:.4f} at epoch {epoch}"
    panel.plot(
        epoch, value, color=color, marker="o", markersize=6, linestyle=style, label=label,
        markeredgecolor="white",
    )  # fmt: skip


def _margins(last_epoch: int) -> tuple[float, float]:
    """Leave room for a marker on the first and on the last epoch."""
    margin = 0.03 * max(last_epoch, 1)
    return -margin, last_epoch + margin
