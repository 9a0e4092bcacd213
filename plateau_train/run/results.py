"""What the replicas of a run achieved: the numbers of every table, text and file of results."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from statistics import fmean, geometric_mean
from typing import Any, NamedTuple

from plateau_train.config import Settings
from plateau_train.run.history import History, completed, records_at
from plateau_train.run.records import EpochRecord, MeanScores, MeanStd, best_record, mean_scores

# Accuracies are fractions of the same number of images: a smaller difference is rounding.
ROUNDING = 1e-6

METRICS = ("loss", "accuracy")


class ScaleRange(NamedTuple):
    """Geometric mean, lowest and highest value of a scale over replicas.

    The mean is 0 if a scale has underflowed to 0, which has no logarithm.
    """

    geometric_mean: float
    min: float
    max: float

    @classmethod
    def of(cls, scales: Sequence[float]) -> "ScaleRange":
        low, high = min(scales), max(scales)
        mean = geometric_mean(scales) if low > 0 else 0.0
        return cls(min(max(mean, low), high), low, high)  # rounding may leave the range


class Results(NamedTuple):
    """What the replicas of a run achieved: means over those that did not diverge.

    If all diverged, these are means over those with the most epochs.

    Accuracies are fractions. Epochs count from 1, and 0 is the untrained network. A score is the
    accuracy on ``split``: the held-out images, or the test images where none are held out.
    """

    seeds: Sequence[int]  # of these replicas
    epoch: int  # the last one
    split: str
    final: Mapping[str, MeanScores]  # on each split, after the last epoch
    final_scales: Sequence[float]  # of each replica
    best_epoch: int  # the first one of the highest mean score of the replicas that finished it
    best: Mapping[str, MeanScores]  # on each split, after the best epoch
    # Means of what each replica has in an epoch of its own:
    own_best_score: MeanStd
    chosen_by_val: MeanStd | None  # test accuracy in the epoch of the highest validation accuracy
    highest_test_accuracy: MeanStd
    highest_test_epoch: MeanStd
    drop_epochs: Sequence[Sequence[int]]  # of each replica

    @property
    def final_score(self) -> MeanStd:
        return self.final[self.split].accuracy

    @property
    def best_score(self) -> MeanStd:
        return self.best[self.split].accuracy

    @property
    def final_scale(self) -> ScaleRange:
        return ScaleRange.of(self.final_scales)

    @property
    def num_drops(self) -> MeanStd:
        return MeanStd.of([len(epochs) for epochs in self.drop_epochs])

    def drops_of(self, settings: Settings) -> MeanStd | None:
        """Return the number of drops of the plateau rule; None under another schedule."""
        return self.num_drops if settings.optimizer.schedule == "plateau" else None

    @classmethod
    def of(cls, histories: Sequence[History]) -> "Results":
        """Compute the results of one replica or more."""
        whole = completed(histories)
        last = [history.records[-1] for history in whole]
        best_epoch = max(
            range(max(history.last_epoch for history in histories) + 1),
            key=lambda epoch: fmean(record.score for record in records_at(histories, epoch)),
        )
        own_best = [best_record(history.records) for history in whole]
        chosen = [record.test_accuracy for record in own_best]
        highest = [max(history.records, key=attrgetter("test_accuracy")) for history in whole]
        return cls(
            seeds=[history.seed for history in whole],
            epoch=max(record.epoch for record in last),
            split=last[0].score_split,
            final=mean_scores(last),
            final_scales=[record.scale for record in last],
            best_epoch=best_epoch,
            best=mean_scores(records_at(histories, best_epoch)),
            own_best_score=MeanStd.of([record.score for record in own_best]),
            chosen_by_val=MeanStd.of(chosen) if last[0].score_split == "val" else None,
            highest_test_accuracy=MeanStd.of([record.test_accuracy for record in highest]),
            highest_test_epoch=MeanStd.of([record.epoch for record in highest]),
            drop_epochs=[[drop.epoch for drop in history.drops] for history in whole],
        )


class ReplicaResult(NamedTuple):
    """What one replica achieved, by the names that docs/tables.md explains."""

    schedule: str
    mode: str | None  # None where the schedule does not depend on it
    dataset: str
    replica: int
    seed: int
    last_epoch: int
    ending: str | None  # None while it can be continued
    final_train_loss: float
    final_train_accuracy: float
    final_val_loss: float | None
    final_val_accuracy: float | None
    final_test_loss: float
    final_test_accuracy: float
    final_scale: float
    final_learning_rate: float
    best_by: str
    best_epoch: int
    best_train_loss: float
    best_train_accuracy: float
    best_val_loss: float | None
    best_val_accuracy: float | None
    best_test_loss: float
    best_test_accuracy: float
    num_drops: int | None  # of the plateau rule
    drop_epochs: tuple[int, ...] | None

    @classmethod
    def of(cls, history: History, settings: Settings) -> "ReplicaResult":
        last, best = history.records[-1], best_record(history.records)
        follows_rule = settings.optimizer.schedule == "plateau"
        epochs = tuple(drop.epoch for drop in history.drops) if follows_rule else None
        return cls(
            schedule=settings.optimizer.schedule,
            mode=settings.plateau.mode if follows_rule else None,
            dataset=settings.data.dataset,
            replica=history.replica,
            seed=history.seed,
            last_epoch=last.epoch,
            ending=history.ending and history.ending.reason,
            **_scores("final", last),
            final_scale=last.scale,
            final_learning_rate=last.learning_rate,
            best_by=f"{last.score_split}_accuracy",
            best_epoch=best.epoch,
            **_scores("best", best),
            num_drops=None if epochs is None else len(epochs),
            drop_epochs=epochs,
        )


def _scores(when: str, record: EpochRecord) -> dict[str, Any]:
    names = (f"{split}_{metric}" for split in ("train", "val", "test") for metric in METRICS)
    return {f"{when}_{name}": getattr(record, name) for name in names}
