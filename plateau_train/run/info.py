"""The description of a training, and the summary of a finished run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from plateau_train.config import Settings
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run
from plateau_train.run.records import EpochRecord, MeanScores, best_record


class TrainingInfo(NamedTuple):
    """Descriptions of a training before its first step."""

    settings: Settings
    directory: RunDirectory
    data: str
    model: str
    devices: str
    memory: str
    steps_per_epoch: int
    last_epoch: int  # of the checkpoint that it continues from; -1 for a new run


def summarize(run: Run) -> dict[str, Any]:
    """Return the content of ``summary.json``."""
    settings, dataset, results = run.settings, run.environment.dataset, run.results
    return {
        "dataset": dataset.name,
        "fallback": dataset.fallback or None,
        "mode": settings.plateau.mode,
        "schedule": settings.optimizer.schedule,
        "epochs": results.epoch,
        "best_by": f"{results.split} accuracy",
        "best_epoch": results.best_epoch,
        "final": _flatten(results.final),
        "best": _flatten(results.best),
        "replicas": [
            {
                "seed": history.seed,
                "ending": history.ending and history.ending.reason,
                "final": _scores(history.records[-1]),
                "best": _scores(best_record(history.records)),
                "num_drops": len(history.drops),
                "drop_epochs": [drop.epoch for drop in history.drops],
            }
            for history in run.histories
        ],
    }


def _scores(record: EpochRecord) -> dict[str, Any]:
    return record.model_dump(exclude={"format", "replica", "seed", "observations"})


def _flatten(scores: Mapping[str, MeanScores]) -> dict[str, Any]:
    return {
        f"{split}_{metric}": mean._asdict()
        for split, means in scores.items()
        for metric, mean in means._asdict().items()
    }
