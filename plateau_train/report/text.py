"""What a run says of itself in words: its header, what an observation is, its summary and its end.

Knows the data and the records; the devices are strings to it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from plateau_train import config
from plateau_train.config import Settings
from plateau_train.data.splits import Dataset
from plateau_train.run.checkpoint import Manifest
from plateau_train.run.directory import RunDirectory
from plateau_train.run.records import EpochRecord, History, MeanStd, best_of, mean_scores


def count_steps(dataset: Dataset, settings: Settings) -> int:
    """Count the whole batches of the training images: the steps of an epoch."""
    return len(dataset.train.labels) // settings.data.batch_size


def describe_observation(plateau: config.PlateauSettings) -> str:
    """Say what one observation is."""
    what = f"{'1 - ' if plateau.metric == 'accuracy' else ''}{plateau.split} {plateau.metric}"
    if plateau.accumulation_size == 1:
        return what
    unit = "steps" if plateau.split == "train" else "epochs"
    return f"{what}, mean of {plateau.accumulation_size} {unit}"


def describe_header(dataset: Dataset, settings: Settings, devices: str) -> dict[str, str]:
    """Say what is about to be trained, and what patience means in epochs."""
    optimizer, num_steps = settings.optimizer, count_steps(dataset, settings)
    sizes = [math.prod(dataset.image_shape), *settings.model.hidden_sizes, len(dataset.class_names)]
    num_params = sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
    counts = [f"{len(dataset.train.labels):,} training"]
    if dataset.val is not None:
        counts.append(f"{len(dataset.val.labels):,} validation")
    counts.append(f"{len(dataset.test.labels):,} test images")
    shape = "x".join(map(str, dataset.image_shape))
    return {
        "data": f"{dataset.name}: {', '.join(counts)} of {shape}, "
        f"{len(dataset.class_names)} classes; {dataset.source}"
        + ("; NOT Fashion-MNIST" if dataset.fallback else ""),
        "model": f"MLP {'-'.join(map(str, sizes))}, {num_params:,} parameters",
        "training": f"{optimizer.optimizer} at {optimizer.learning_rate:g}, "
        f"{in_epochs(settings.run.epochs)} of {num_steps} steps "
        f"of {settings.data.batch_size} images, {_seeds(settings)}",
        **_describe_schedule(settings, num_steps),
        "device": devices,
    }


def _seeds(settings: Settings) -> str:
    seeds = settings.run.seeds
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _describe_schedule(settings: Settings, num_steps: int) -> dict[str, str]:
    plateau, optimizer = settings.plateau, settings.optimizer
    floor = f"{plateau.min_scale:g}"
    baselines = {
        "constant": "constant: the scale stays 1",
        "cosine": "cosine: the scale falls from 1 "
        f"to {floor} over {in_epochs(settings.run.epochs)}",
        "step": f"step: the scale is multiplied by {plateau.factor:g} "
        f"every {in_epochs(optimizer.step_epochs)}, down to {floor}",
    }
    if optimizer.schedule != "plateau":
        return {"schedule": f"{baselines[optimizer.schedule]}; the plateau rule only observes"}
    epochs = plateau.observation_epochs(num_steps)
    return {
        "plateau": f"an observation is the {describe_observation(plateau)} ({in_epochs(epochs)}); "
        f"patience {plateau.patience} ({in_epochs(plateau.patience * epochs)}), "
        f"cooldown {plateau.cooldown} ({in_epochs(plateau.cooldown * epochs)}), "
        f"factor {plateau.factor:g}, rtol {plateau.rtol:g}, atol {plateau.atol:g}"
    }


def in_epochs(epochs: float) -> str:
    shown = f"{epochs:.2g}" if epochs < 10 else f"{epochs:,.0f}"
    return f"{shown} epoch{'' if shown == '1' else 's'}"


def warn_of_a_run_without_drops(dataset: Dataset, settings: Settings) -> str | None:
    """Say so if the run is over before patience can run out."""
    plateau = settings.plateau
    if settings.optimizer.schedule != "plateau":
        return None
    unit, values = "epochs", settings.run.epochs
    if plateau.split == "train":
        unit, values = "steps", settings.run.epochs * count_steps(dataset, settings)
    # The first observation improves on nothing, and then patience begins.
    needed = (1 + plateau.patience) * plateau.accumulation_size
    if values >= needed:
        return None
    return (
        f"The rate cannot drop in this run: that takes {needed:,} {unit}, "
        f"(1 + patience) x accumulation size, and it has {values:,}."
    )


def summarize(dataset: Dataset, manifest: Manifest) -> dict[str, Any]:
    """Collect what a run came to; of several replicas those that reached its end."""
    settings = manifest.settings
    final, best = manifest.final, manifest.at(manifest.best_epoch)
    summary: dict[str, Any] = {
        "dataset": dataset.name,
        "fallback": dataset.fallback or None,
        "mode": settings.plateau.mode,
        "schedule": settings.optimizer.schedule,
        "epochs": manifest.epoch,
        "best_by": final[0].scored_by,
    }
    if len(settings.run.seeds) == 1:
        return summary | {
            "final": _without_observations(final[0]),
            "best": _without_observations(best[0]),
            "num_drops": len(manifest.drops),
            "drop_epochs": [drop.epoch for drop in manifest.drops],
        }
    histories = manifest.histories
    return summary | {
        "best_epoch": manifest.best_epoch,
        "final": _named_spread(final),
        "best": _named_spread(best),
        "replicas": [
            {
                "seed": history.seed,
                "diverged": history.records[-1].epoch < manifest.epoch,
                "final": _without_observations(history.records[-1]),
                "best": _without_observations(best_of(history.records)),
                "num_drops": len(history.drops),
                "drop_epochs": [drop.epoch for drop in history.drops],
            }
            for history in histories
        ],
    }


def _without_observations(record: EpochRecord) -> dict[str, Any]:
    return record.model_dump(exclude={"observations"})


def _named_spread(records: Sequence[EpochRecord]) -> dict[str, Any]:
    return {
        f"{split}_{metric}": spread._asdict()
        for split, *spreads in mean_scores(records)
        for metric, spread in zip(("loss", "accuracy"), spreads, strict=True)
    }


def describe_end(
    run: RunDirectory, dataset: Dataset, manifest: Manifest, took: str
) -> dict[str, str]:
    """Say how a run ended, and what to type next."""
    best_epoch, mean = manifest.best_epoch, "mean " * (len(manifest.histories) > 1)
    best = mean_scores(manifest.at(best_epoch))
    return {
        "done": f"{in_epochs(manifest.epoch)} in {took}"
        + (f", on {dataset.name}, NOT on Fashion-MNIST" if dataset.fallback else ""),
        **{
            split: f"loss {loss:.4f}, accuracy {accuracy:.4f}"
            for split, loss, accuracy in mean_scores(manifest.final)
        },
        "best": f"epoch {best_epoch}, of the highest {mean}{manifest.final[0].scored_by}: "
        + ", ".join(f"{split} {accuracy:.4f}" for split, _, accuracy in best),
        "drops": _describe_drops(manifest.histories),
        "plot": str(run.plot),
        "next": f"plateau-train evaluate {run}",
    }


def _describe_drops(histories: Sequence[History]) -> str:
    scales = sorted({history.records[-1].scale for history in histories})
    final = f"final scale {' to '.join(f'{scale:.6g}' for scale in {scales[0]: 0, scales[-1]: 0})}"
    if len(histories) > 1:
        return f"{MeanStd.of([len(drops) for *_, drops in histories]):.1f} a replica, {final}"
    drops = histories[0].drops
    fell = ", ".join(str(drop.epoch) for drop in drops) or "none"
    return f"{len(drops)} (epochs: {fell}), {final}"
