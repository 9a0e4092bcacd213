"""The records of a run, one JSON object a line: epochs, drops, endings, notices, times."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, computed_field

from plateau_train.config import PlateauSettings

FORMAT = 1  # of every line

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0)]  # or 0


def describe_problem(error: ValidationError) -> str:
    """Return the first problem of a file's content, and where in it."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    return problem["msg"] + (place and f" at {place}")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)

    format: int = FORMAT


class ObservedValue(BaseModel):
    """A value that the plateau rule observed after a step, counted from the start of the run."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, strict=True)

    step: int = Field(ge=1)
    value: float  # smoothed, if the rule smooths
    raw: float | None = Field(default=None, exclude_if=lambda raw: raw is None)  # where it does

    @property
    def measured(self) -> float:
        """The value before it is smoothed."""
        return self.value if self.raw is None else self.raw


class EpochRecord(_Record):
    """The metrics of a replica in one epoch, and the state of the rule after it.

    Epoch 0 is the untrained network. Losses are in nats, accuracies are fractions. The train
    metrics are means over the epoch's mini-batches as seen during training; the others are
    evaluations of the parameters after the epoch. No time and no date: equal runs write equal
    lines.
    """

    replica: Count = 0
    seed: Count = 0
    epoch: Count
    step: Count
    train_loss: float
    train_accuracy: Share
    test_loss: float
    test_accuracy: Share
    val_loss: float | None = None
    val_accuracy: Share | None = None
    scale: Share
    learning_rate: Positive
    wait: Count
    cooldown: Count
    best_value: float | None = None
    to_beat: float | None = None
    observations: tuple[ObservedValue, ...] = ()

    @property
    def score_split(self) -> Literal["val", "test"]:
        """The held-out images, or the test images where none are held out."""
        return "test" if self.val_accuracy is None else "val"

    @property
    def score(self) -> float:
        """The accuracy on that split; the best epoch has the highest."""
        return self.test_accuracy if self.val_accuracy is None else self.val_accuracy

    def scores(self) -> list[tuple[str, float, float]]:
        """Return the loss and the accuracy of each split."""
        scores = [("train", self.train_loss, self.train_accuracy)]
        if self.val_loss is not None and self.val_accuracy is not None:
            scores.append(("val", self.val_loss, self.val_accuracy))
        return [*scores, ("test", self.test_loss, self.test_accuracy)]


def drop_reason(
    observed: str, value: float, best: float, to_beat: float, waited: int, *, side: str = "below"
) -> str:
    """Return why an observation lowered the scale, as one sentence without a full stop.

    ``observed`` describes an observation, and may be empty; an improvement is on the ``side`` of
    the value to beat.
    """
    times = "1 observation" if waited == 1 else f"{waited} observations in a row"
    what, verb = f" ({observed})" * bool(observed), "was" if waited == 1 else "were"
    return (
        f"{times}{what} {verb} not {side} {to_beat:.6g} (best {best:.6g}); the last was {value:.6g}"
    )


def ending_reason(
    ending: str,
    rule: PlateauSettings,
    observed: str,
    value: float,
    best: float,
    to_beat: float,
    waited: int,
) -> str:
    """Return why an observation ended a training, as one sentence without a full stop.

    ``ending`` is one of ``numerics.plateau.ENDINGS``; the numbers are those of ``drop_reason``.
    """
    if ending == "early-stop" and rule.early_stop is not None:
        waited = rule.early_stop
    why = drop_reason(observed, value, best, to_beat, waited)
    return {
        "max-drops": f"--max-drops {rule.max_drops}: the scale would drop once more, because {why}",
        "min-scale": f"--stop-at-min-scale: the scale is {rule.min_scale:g}, and {why}",
        "early-stop": f"--early-stop {rule.early_stop}: {why}",
    }[ending]


class Drop(_Record):
    """An observation that lowered the scale, and why."""

    event: Literal["drop"] = "drop"
    replica: Count = 0
    seed: Count = 0
    epoch: Count
    step: Count
    position: Positive  # in epochs, a fraction where the drop fell inside one
    scale_before: Share
    scale_after: Share
    learning_rate_before: float
    learning_rate_after: float
    observed: str  # description of an observation
    value: float
    best: float
    to_beat: float
    waited: Count

    @computed_field
    @property
    def reason(self) -> str:
        return drop_reason(self.observed, self.value, self.best, self.to_beat, self.waited)

    def describe(self) -> str:
        """Return when and why the scale dropped, from what to what."""
        return (
            f"drop in epoch {self.epoch}, after {self.step:,} steps: "
            f"scale {self.scale_before:.6g} -> {self.scale_after:.6g}, "
            f"lr {self.learning_rate_before:.6g} -> {self.learning_rate_after:.6g}, "
            f"because {self.reason}"
        )


class Ending(_Record):
    """The end of a replica: its last recorded epoch, and the reason.

    ``reason`` is ``diverged`` for a replica that did not finish, otherwise the setting that ended
    it, such as ``epochs``.
    """

    event: Literal["ended"] = "ended"
    replica: int = 0
    seed: int = 0
    epoch: int
    reason: str
    message: str

    @property
    def is_complete(self) -> bool:
        return self.reason != "diverged"

    @property
    def is_early(self) -> bool:
        """Whether something other than the number of epochs ended a replica that is complete."""
        return self.reason not in ("diverged", "epochs")

    def describe(self) -> str:
        return f"ended after epoch {self.epoch}: {self.message}"

    def is_final(self, num_epochs: int) -> bool:
        """Return whether the replica stays ended in a run of this number of epochs."""
        return self.reason != "epochs" or self.epoch >= num_epochs


class RunWarning(_Record):
    """A warning about the results, for the whole run or for a replica in an epoch."""

    event: Literal["warning"] = "warning"
    replica: int | None = None
    seed: int | None = None
    epoch: int | None = None
    reason: str = ""  # such as min-scale
    message: str


class Notice(_Record):
    """A failure, an interruption or a resume of a run, with a message."""

    event: Literal["failed", "interrupted", "resumed"]
    message: str


class Timing(_Record):
    """The duration of an epoch in seconds; samples are training images of all replicas.

    Runs that are trained in one program share its time equally.
    """

    epoch: Count
    train_seconds: Positive
    evaluate_seconds: Positive
    samples_per_second: Positive | None  # None for epoch 0, which trains nothing

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.evaluate_seconds


Event = Drop | Ending | RunWarning | Notice

EPOCHS = TypeAdapter(EpochRecord)
EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
TIMINGS = TypeAdapter(Timing)


class MeanStd(NamedTuple):
    """Mean of a value over replicas and its sample standard deviation, which is 0 for one."""

    mean: float
    sd: float
    num_replicas: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "MeanStd":
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))

    def __format__(self, form: str) -> str:
        """Write both in the same format, and a single value without a deviation.

        Without a format the value is a count: the mean of several has one decimal.
        """
        form = form or (".1f" if self.num_replicas > 1 else ".0f")
        sd = f" \N{PLUS-MINUS SIGN} {self.sd:{form}}" if self.num_replicas > 1 else ""
        return f"{self.mean:{form}}{sd}"


class MeanScores(NamedTuple):
    """The loss and the accuracy on a split, over replicas."""

    loss: MeanStd
    accuracy: MeanStd


def mean_scores(records: Sequence[EpochRecord]) -> dict[str, MeanScores]:
    """Return the loss and the accuracy on each split over the replicas of one epoch."""
    means = {}
    for scores in zip(*(record.scores() for record in records), strict=True):
        (split, *_), losses, accuracies = zip(*scores, strict=True)
        means[split] = MeanScores(MeanStd.of(losses), MeanStd.of(accuracies))
    return means


def best_record(records: Sequence[EpochRecord]) -> EpochRecord:
    """Return the first epoch of the highest accuracy."""
    return max(records, key=lambda record: record.score)
