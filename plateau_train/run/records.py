"""What a run records, as JSON lines: epochs, drops, times."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, computed_field

from plateau_train.errors import RunError


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class EpochRecord(_Record):
    """The metrics of one epoch and the state of the rule after it.

    Epoch 0 is the untrained network. Losses are in nats, accuracies shares of 1. The train
    metrics are means over the epoch's mini-batches as they were seen; the others are whole
    evaluations of the parameters at the epoch's end. Holds no time and no date: two equal runs
    write equal lines.
    """

    replica: int = 0  # a run of one training has replica 0 alone
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    scale: float
    learning_rate: float
    wait: int
    cooldown: int
    best_value: float | None = None
    to_beat: float | None = None
    observations: tuple[float, ...] = ()

    @property
    def scored_by(self) -> str:
        """What the best epoch has most of: accuracy, on the held-out images if there are any."""
        missing = self.val_loss is None or self.val_accuracy is None
        return "test accuracy" if missing else "val accuracy"

    @property
    def score(self) -> float:
        return self.test_accuracy if self.val_accuracy is None else self.val_accuracy

    def scores(self) -> list[tuple[str, float, float]]:
        """List the loss and the accuracy of each split that there is."""
        scores = [("train", self.train_loss, self.train_accuracy)]
        if self.val_loss is not None and self.val_accuracy is not None:
            scores.append(("val", self.val_loss, self.val_accuracy))
        return [*scores, ("test", self.test_loss, self.test_accuracy)]


def drop_reason(observed: str, value: float, best: float, to_beat: float, waited: int) -> str:
    """Say why an observation lowered the scale, in one sentence without a full stop."""
    times = "1 observation" if waited == 1 else f"{waited} observations in a row"
    verb = "was" if waited == 1 else "were"
    return (
        f"{times} ({observed}) {verb} not below {to_beat:.6g} "
        f"(best {best:.6g}); the last was {value:.6g}"
    )


class Drop(_Record):
    """One observation that lowered the scale, and why."""

    event: Literal["drop"] = "drop"
    replica: int = 0
    epoch: int
    step: int
    position: float  # in epochs, a fraction where the drop fell inside one
    scale_before: float
    scale_after: float
    learning_rate_before: float
    learning_rate_after: float
    observed: str  # what the value is, in words
    value: float
    best: float
    to_beat: float
    waited: int

    @computed_field
    @property
    def reason(self) -> str:
        """The reason in one sentence, without a full stop."""
        return drop_reason(self.observed, self.value, self.best, self.to_beat, self.waited)

    def describe(self) -> str:
        """Say when and why the scale dropped, from what to what."""
        return (
            f"drop in epoch {self.epoch}, after {self.step:,} steps: "
            f"scale {self.scale_before:.6g} -> {self.scale_after:.6g}, "
            f"lr {self.learning_rate_before:.6g} -> {self.learning_rate_after:.6g}, "
            f"because {self.reason}"
        )


class History(NamedTuple):
    """One training of a run: its epochs, epoch 0 first, and its drops.

    One that diverged has fewer epochs than the others.
    """

    replica: int
    seed: int
    records: Sequence[EpochRecord]
    drops: Sequence[Drop]


class MeanStd(NamedTuple):
    """Mean of a value over replicas and its sample standard deviation, which is 0 for one."""

    mean: float
    sd: float
    num_replicas: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "MeanStd":
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))

    def __format__(self, form: str) -> str:
        """Write both in the same form, and of a single value that alone."""
        sd = f" \N{PLUS-MINUS SIGN} {self.sd:{form}}" if self.num_replicas > 1 else ""
        return f"{self.mean:{form}}{sd}"


def mean_scores(records: Sequence[EpochRecord]) -> list[tuple[str, MeanStd, MeanStd]]:
    """List loss and accuracy of each split over the replicas of one epoch."""
    return [
        (
            rows[0][0],
            MeanStd.of([loss for _, loss, _ in rows]),
            MeanStd.of([acc for *_, acc in rows]),
        )
        for rows in zip(*(record.scores() for record in records), strict=True)
    ]


class Timing(_Record):
    """How long an epoch took, in seconds; samples a second are training images of all replicas.

    Of runs that are trained in one program each has its share of the time.
    """

    epoch: int
    train_seconds: float
    evaluate_seconds: float
    samples_per_second: float | None  # None for epoch 0, which trains nothing


class Notice(_Record):
    """Something else that happened to a run, in a sentence."""

    event: Literal["warning", "failed", "interrupted", "resumed", "diverged"]
    message: str
    replica: int | None = None  # that it happened to, if not to the run


Event = Annotated[Drop | Notice, Field(discriminator="event")]

EPOCHS = TypeAdapter(EpochRecord)
TIMINGS = TypeAdapter(Timing)
EVENTS: TypeAdapter[Drop | Notice] = TypeAdapter(Event)

RecordType = TypeVar("RecordType")


def read_records(
    path: Path, kind: TypeAdapter[RecordType], *, torn: bool = False
) -> list[RecordType]:
    """Read a file of JSON lines; raises ``RunError`` with the number of a line that is damaged.

    ``torn`` leaves out a last line without its end, which a process that is killed leaves behind.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} cannot be read: {error}", hint="give a run folder, such as runs/latest"
        ) from error
    if torn:
        text = text[: text.rfind("\n") + 1]
    # Not splitlines, which also breaks at characters that stand unescaped in JSON.
    lines = text.removesuffix("\n").split("\n")
    records = []
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            records.append(kind.validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise RunError(
                f"{path} line {number} is damaged: {problem['msg']}" + (place and f" at {place}"),
                hint="restore the file from a copy, or from a checkpoint with plateau-train resume",
            ) from error
    return records


def read_history(path: Path) -> list[EpochRecord]:
    """Read the epochs that a run has finished so far, without a line that a kill has torn.

    Raises ``RunError`` unless each replica's are 0, 1, 2, ... and all are alike.
    """
    records = read_records(path, EPOCHS, torn=True) if path.exists() else []
    hint = "restore the file from a copy, or from a checkpoint with plateau-train resume"
    expected = Counter[int]()
    for number, record in enumerate(records, start=1):
        if record.epoch != expected[record.replica]:
            raise RunError(
                f"{path} line {number} is of epoch {record.epoch}, not {expected[record.replica]}",
                hint=hint,
            )
        if record.scored_by != records[0].scored_by:
            raise RunError(f"{path} line {number} lacks validation, or has it alone", hint=hint)
        expected[record.replica] += 1
    return records


def split_replicas(
    seeds: Sequence[int], records: Iterable[EpochRecord], drops: Iterable[Drop]
) -> list[History]:
    """Sort what a run has recorded by its replicas."""
    epochs, falls = defaultdict(list), defaultdict(list)
    for record in records:
        epochs[record.replica].append(record)
    for drop in drops:
        falls[drop.replica].append(drop)
    return [
        History(replica, seed, epochs[replica], falls[replica])
        for replica, seed in enumerate(seeds)
    ]


def best_of(records: Sequence[EpochRecord]) -> EpochRecord:
    """Return the first epoch of the highest accuracy."""
    return max(records, key=lambda record: record.score)


def best_epoch(records: Iterable[EpochRecord]) -> int:
    """Return the first epoch of the highest accuracy, of several replicas of the highest mean.

    The mean is over those that were finite at that epoch: its checkpoint was chosen then.
    """
    scores = defaultdict(list)
    for record in records:
        scores[record.epoch].append(record.score)
    return max(scores, key=lambda epoch: fmean(scores[epoch]))


def read_drops(path: Path) -> list[Drop]:
    """Read the drops among a run's events; a run without events has no such file."""
    events = read_records(path, EVENTS, torn=True) if path.exists() else []
    return [event for event in events if isinstance(event, Drop)]


def read_notices(path: Path) -> Iterator[Notice]:
    """Yield the notices among a run's events, without what cannot be read."""
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValidationError):
                event = EVENTS.validate_json(line)
                if isinstance(event, Notice):
                    yield event
