"""A run as text: its header, its end, and the warning that its rate cannot drop."""

from collections.abc import Sequence

from plateau_train.config import Settings
from plateau_train.run.info import TrainingInfo
from plateau_train.run.reader import Run
from plateau_train.run.results import Results


def describe_header(info: TrainingInfo) -> dict[str, str]:
    """Return what is about to be trained, and the patience in epochs."""
    settings, optimizer = info.settings, info.settings.optimizer
    seeds = settings.run.seeds
    rows = {
        "data": info.data,
        "model": info.model,
        "training": f"{optimizer.optimizer} at {optimizer.learning_rate:g}, "
        f"{in_epochs(settings.run.epochs)} of {info.steps_per_epoch} steps "
        f"of {settings.data.batch_size} images, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        **_describe_schedule(settings, info.steps_per_epoch),
        "device": info.devices,
    }
    if len(seeds) > 1:
        rows["replicas"] = f"{len(seeds)} seeds in one program; {info.memory}"
    rows["run"] = str(info.directory.path)
    if info.last_epoch >= 0:
        rows["resumed"] = f"after epoch {info.last_epoch} of {settings.run.epochs}"
    return rows


def _describe_schedule(settings: Settings, steps_per_epoch: int) -> dict[str, str]:
    plateau, optimizer = settings.plateau, settings.optimizer
    floor = f"{plateau.min_scale:g}"
    baselines = {
        "constant": "constant: the scale stays 1",
        "cosine": f"cosine: the scale falls from 1 to {floor} over "
        f"{in_epochs(settings.run.epochs)}",
        "step": f"step: the scale is multiplied by {plateau.factor:g} "
        f"every {in_epochs(optimizer.step_epochs)}, down to {floor}",
    }
    if optimizer.schedule in baselines:
        return {"schedule": f"{baselines[optimizer.schedule]}; the plateau rule only records"}
    epochs = plateau.observation_epochs(steps_per_epoch)
    return {
        "plateau": f"an observation is the {plateau.describe_observation()} "
        f"({in_epochs(epochs)}); patience {plateau.patience} "
        f"({in_epochs(plateau.patience * epochs)}), cooldown {plateau.cooldown} "
        f"({in_epochs(plateau.cooldown * epochs)}), factor {plateau.factor:g}, "
        f"rtol {plateau.rtol:g}, atol {plateau.atol:g}"
    }


def in_epochs(epochs: float) -> str:
    shown = f"{epochs:.2g}" if epochs < 10 else f"{epochs:,.0f}"
    return f"{shown} epoch{'' if shown == '1' else 's'}"


def warn_of_no_drops(settings: Settings, steps_per_epoch: int) -> str | None:
    """Return a warning if the run is over before patience can run out."""
    plateau = settings.plateau
    if settings.optimizer.schedule != "plateau":
        return None
    unit, num_values = "epochs", settings.run.epochs
    if plateau.split == "train":
        unit, num_values = "steps", settings.run.epochs * steps_per_epoch
    # The first observation improves on nothing; patience begins after it.
    needed = (1 + plateau.patience) * plateau.accumulation_size
    if num_values >= needed:
        return None
    return (
        f"The rate cannot drop in this run: that takes {needed:,} {unit}, "
        f"(1 + patience) x accumulation size, and it has {num_values:,}."
    )


def describe_end(run: Run, duration: str) -> dict[str, str]:
    """Return how a run ended, and what to type next."""
    results, dataset = run.results, run.environment.dataset
    mean = "mean " if len(run.histories) > 1 else ""
    fallback = f", on {dataset.name}, NOT on Fashion-MNIST" if dataset.fallback else ""
    return {
        "done": f"{in_epochs(results.epoch)} in {duration}{fallback}",
        **{
            split: f"loss {loss:.4f}, accuracy {accuracy:.4f}"
            for split, (loss, accuracy) in results.final.items()
        },
        "best": f"epoch {results.best_epoch}, of the highest {mean}{results.split} accuracy: "
        + ", ".join(f"{split} {accuracy:.4f}" for split, (_, accuracy) in results.best.items()),
        "drops": _describe_drops(results),
        "plot": str(run.directory.plot),
        "next": f"plateau-train evaluate {run.directory}",
    }


def _describe_drops(results: Results) -> str:
    if len(results.seeds) > 1:
        return f"{results.num_drops:.1f} a seed, final scale {show_range(results.final_scales)}"
    (epochs,) = results.drop_epochs
    listed = ", ".join(map(str, epochs)) or "none"
    return f"{len(epochs)} (epochs: {listed}), final scale {show_range(results.final_scales)}"


def show_range(values: Sequence[float]) -> str:
    """Return the lowest and the highest value as text, or the only one."""
    return " to ".join(dict.fromkeys(f"{value:.6g}" for value in (min(values), max(values))))
