"""What is about to be trained, and what a finished run came to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from plateau_train.config import Settings
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import best_epoch, completed, records_at
from plateau_train.run.reader import Run
from plateau_train.run.records import EpochRecord, best_record, mean_scores


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
    settings, dataset = run.settings, run.environment.dataset
    whole, best = completed(run.histories), best_epoch(run.histories)
    final = [history.records[-1] for history in whole]
    return {
        "dataset": dataset.name,
        "fallback": dataset.fallback or None,
        "mode": settings.plateau.mode,
        "schedule": settings.optimizer.schedule,
        "epochs": max(record.epoch for record in final),
        "best_by": final[0].scored_by,
        "best_epoch": best,
        "final": _means(final),
        "best": _means(records_at(run.histories, best)),
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


def _means(records: Sequence[EpochRecord]) -> dict[str, Any]:
    return {
        f"{split}_{metric}": mean._asdict()
        for split, *means in mean_scores(records)
        for metric, mean in zip(("loss", "accuracy"), means, strict=True)
    }
