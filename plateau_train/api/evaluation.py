"""Score a checkpoint again: loss and accuracy, each class, and the confusion matrix."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plateau_train import config, plots
from plateau_train.api.options import PathLike, for_python
from plateau_train.api.pictures import draw_into
from plateau_train.api.training import StartDevices
from plateau_train.config import FIXED_PANELS_OPTIONS, FigureOptions, Resolved, Settings
from plateau_train.data.splits import Progress
from plateau_train.errors import ConfigError, RunError
from plateau_train.report.console import Column, Table, printable
from plateau_train.report.rows import Columns, Row, to_columns, to_html
from plateau_train.run import checkpoint
from plateau_train.run.checkpoint import BEST, Checkpoint, Manifest
from plateau_train.run.directory import FIND_HINT, RunDirectory
from plateau_train.run.history import records_until
from plateau_train.run.reader import Run
from plateau_train.run.records import EpochRecord, best_record
from plateau_train.run.results import ROUNDING
from plateau_train.training import setup
from plateau_train.training.scoring import Confusion, Score, score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("plateau_train")

Loading = Callable[[], AbstractContextManager[Progress | None]]

# The settings that say where the data and the code of the network are.
PLACES = ("dataset", "data_dir", "cache_dir", "model")

CLASS_COLUMNS = (
    Column("name", "class", is_number=False),
    Column("num_images", "images", ",", omit=1),
    Column("accuracy", "accuracy", ".4f"),
    Column("precision", "precision", ".4f", omit=2),
    Column("mistakes", "wrongly predicted as", is_number=False),
)


class ClassResult(NamedTuple):
    """How often the test images of a class are recognized.

    ``accuracy`` is the fraction of the images of the class that are predicted as it, ``precision``
    the fraction of the images predicted as it that are of the class; None if there are no images.
    """

    name: str
    num_images: int
    accuracy: float | None
    precision: float | None
    rival: str | None  # the most frequent wrong prediction of its images
    rival_count: int
    counts: tuple[int, ...]  # of its images, by predicted class

    @property
    def mistakes(self) -> str | None:
        """The most frequent wrong prediction of its images, with its count."""
        return None if self.rival is None else f"{self.rival} ({self.rival_count:,})"


class Weights(NamedTuple):
    """One replica of a checkpoint; ``records`` are those of its epoch, of the finite replicas."""

    checkpoint: Checkpoint
    records: Sequence[EpochRecord]
    replica: int
    title: str  # describes the replica and the checkpoint


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The scores of a checkpoint of a run on the run's own data.

    ``scores`` has the loss (in nats), the accuracy (a fraction) and the number of images of each
    split. ``confusion`` counts the test images, true classes in rows, predicted ones in columns.
    """

    run: Path
    epoch: int
    replica: int
    seed: int
    title: str  # describes the checkpoint
    dataset: str
    source: str  # of the data
    scores: Mapping[str, Score]  # of each split
    classes: Sequence[ClassResult]
    confusion: Confusion

    def score_rows(self) -> list[Row]:
        """Return a row for each split."""
        return [
            self._origin() | {"split": split} | score._asdict()
            for split, score in self.scores.items()
        ]

    def class_rows(self) -> list[Row]:
        """Return a row for each class of the test images."""
        return [
            self._origin()
            | {"class": each.name, "num_images": each.num_images}
            | {"accuracy": each.accuracy, "precision": each.precision}
            | {"most_wrong_class": each.rival, "most_wrong_count": each.rival_count}
            for each in self.classes
        ]

    @property
    def by_class(self) -> Columns:
        """How often the images of each class are recognized, as columns."""
        return to_columns(self.class_rows())

    @for_python(FIXED_PANELS_OPTIONS)
    def plot(self, *, path: PathLike | None = None, **options: Any) -> "Figure":
        """Draw the confusion matrix; also save it to ``path`` if given."""
        return draw_into(path, self._draw, options, FIXED_PANELS_OPTIONS)

    def _draw(self, options: FigureOptions) -> "Figure":
        accuracy = f"test accuracy {self.scores['test'].accuracy:.4f} on {self.dataset}"
        heading = f"{printable(self.run.resolve().name)}\n{self.title}: {accuracy}"
        names = [each.name for each in self.classes]
        return plots.draw_confusion(self.confusion, names, heading, options)

    def _origin(self) -> dict[str, Any]:
        origin = {"run": self.run.resolve().name, "folder": str(self.run)}
        return origin | {"epoch": self.epoch, "replica": self.replica, "seed": self.seed}

    def __repr__(self) -> str:
        accuracy = self.scores["test"].accuracy
        return f"Evaluation({str(self.run)!r}, {self.title}: test accuracy {accuracy:.4f})"

    def _repr_html_(self) -> str:
        scores = [
            Column("split", "split", is_number=False),
            Column("loss", "loss", ".4f"),
            Column("accuracy", "accuracy", ".4f"),
            Column("num_images", "images", ","),
        ]
        tables = Table(self.score_rows(), scores, self.title), Table(self.classes, CLASS_COLUMNS)
        return "".join(map(to_html, tables))


def evaluate(
    path: Path,
    places: Resolved,
    start_devices: StartDevices,
    *,
    which: str = "best",
    replica: int | None = None,
    loading: Loading = nullcontext,
) -> Evaluation:
    """Score a checkpoint on its run's own data, which is loaded inside of ``loading()``.

    ``which`` is best, last or the number of an epoch. Of several replicas the default is the best
    one. Only the places of the data in ``places`` are used. Raises ``ConfigError`` for any other
    word, replica or data set, ``RunError`` for a checkpoint that is not kept, and ``DataError`` for
    other data.
    """
    run = RunDirectory.find(path)
    weights, records, number, title = choose_weights(run, which, replica)
    manifest = weights.manifest
    settings = find_places(run, manifest, places)
    start_devices(manifest.environment.threads)
    setup.permit_model(run, manifest.environment, settings.model, places)
    with loading() as progress:
        known = manifest.environment.dataset
        dataset, _ = setup.load_data(settings, run, known, progress=progress)
    scores, confusion = score(weights, settings.model, dataset, number)
    for record in records:
        if record.replica == number:
            compare_scores(record, scores)
    classes = score_classes(confusion, [printable(name) for name in dataset.class_names])
    where = run.path, manifest.epoch, number, settings.run.seeds[number]
    facts = title, settings.data.title, dataset.source
    return Evaluation(*where, *facts, scores, classes, confusion)


def choose_weights(run: RunDirectory, which: str, replica: int | None) -> Weights:
    """Read a checkpoint and choose a replica of it; raises as ``evaluate``."""
    check_name(which)
    run.refuse_sweep()
    weights = find_checkpoint(run, which)
    epoch = weights.manifest.epoch
    records, seeds = read_records(run, epoch), weights.manifest.settings.run.seeds
    number, chosen = choose_replica(records, seeds, replica, epoch)
    title = f"{chosen}{'' if which.isdecimal() else f'{which} checkpoint, '}epoch {epoch}"
    return Weights(weights, records, number, title)


def find_places(run: RunDirectory, manifest: Manifest, places: Resolved) -> Settings:
    """Return the settings of a checkpoint, with the places where its data and its code are now.

    Raises ``ChangedSettingsError`` for other data and other code.
    """
    return config.merge(
        Resolved(manifest.settings, manifest.origins),
        Resolved(places.settings, {key: places.origin(key) for key in PLACES}),
        problem=f"{run.path} keeps its own data and its own network",
        hint="leave these out, or give the path that they have now",
    ).settings


def check_name(which: str) -> None:
    """Raise ``ConfigError`` for a word that names no checkpoint."""
    if not re.fullmatch(r"best|last|[0-9]{1,9}", which):
        raise ConfigError(
            f"--checkpoint must be best, last or the number of an epoch, got {which}",
            hint="leave it out for the best one",
        )


def find_checkpoint(run: RunDirectory, which: str) -> Checkpoint:
    """Read the best checkpoint of a run, the newest intact one, or that of an epoch."""
    kept = checkpoint.candidates(run.checkpoints)
    if not kept:
        raise RunError(f"{run.path} has no checkpoint", hint=FIND_HINT)
    if which == "best":
        return checkpoint.read_checkpoint(run.checkpoints / BEST)
    if which == "last":
        newest, reasons = checkpoint.read_newest(run.checkpoints)
        if newest is None:
            raise RunError(*reasons, hint="restore a checkpoint from a copy")
        if reasons:
            reasons.append(f"The newest intact checkpoint is of epoch {newest.manifest.epoch}.")
            log.warning("\n".join(reasons))
        return newest
    epochs, reasons = set(), []
    for path in kept:  # the best one may be that of the epoch
        try:
            intact = checkpoint.read_checkpoint(path)
        except RunError as error:
            reasons += error.problems
            continue
        if intact.manifest.epoch == int(which):
            return intact
        epochs.add(intact.manifest.epoch)
    kept_epochs = ", ".join(map(str, sorted(epochs))) or "none"
    raise RunError(
        f"{run.path} has no intact checkpoint of epoch {int(which)}, only of: {kept_epochs}",
        *reasons,
        hint="use --checkpoint with one of these, or with best or last",
    )


def choose_replica(
    records: Sequence[EpochRecord], seeds: Sequence[int], replica: int | None, epoch: int
) -> tuple[int, str]:
    """Return a replica and its description; the default is the best one.

    ``records`` are those of the epoch, of the replicas that were finite. Raises ``ConfigError`` for
    a replica that does not exist, and ``RunError`` for one that had diverged.
    """
    if replica is not None and replica >= len(seeds):
        raise ConfigError(
            f"there is no replica {replica}: the run has {len(seeds)}, counted from 0",
            hint="leave --replica out for the best one",
        )
    best = best_record(records).replica if records else 0
    number = best if replica is None else replica
    if records and number not in {record.replica for record in records}:
        raise RunError(
            f"replica {number} (seed {seeds[number]}) had diverged by epoch {epoch}",
            hint="leave --replica out for the best one",
        )
    if len(seeds) == 1:
        return number, ""
    best_of_all = f", the best of {len(seeds)}" if records and replica is None else ""
    return number, f"replica {number}, seed {seeds[number]}{best_of_all}: "


def read_records(run: RunDirectory, epoch: int) -> list[EpochRecord]:
    """Return the records of the weights after an epoch; none, with a warning, if damaged."""
    try:
        return records_until(Run(run).histories, epoch)
    except RunError as error:
        log.warning("\n".join(error.problems))
        return []


def compare_scores(record: EpochRecord, scores: Mapping[str, Score]) -> None:
    """Log where the scores are not those that the run recorded for the epoch.

    Another accuracy is a warning; another loss is expected on another machine.
    """
    why = "the machine, the devices, the versions or the number of threads differ"
    for split, loss, accuracy in record.scores():
        if split not in scores:
            continue
        now = scores[split]
        if abs(now.accuracy - accuracy) > ROUNDING:
            log.warning(
                f"The {split} accuracy is {now.accuracy:.6f}, and the run recorded "
                f"{accuracy:.6f}: {why}."
            )
        elif now.loss != loss:
            log.info(f"{split} loss {now.loss!r}, recorded as {loss!r}: {why}")


def score_classes(confusion: Confusion, names: Sequence[str]) -> list[ClassResult]:
    """Count how often the images of each class are recognized, and what they are predicted as."""
    results = []
    for number, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        hits, num_images, num_taken = counts[number], counts.sum(), confusion[:, number].sum()
        mistakes = np.where(np.arange(len(names)) == number, 0, counts)
        rival = int(mistakes.argmax())
        results.append(
            ClassResult(
                name=name,
                num_images=int(num_images),
                accuracy=float(hits / num_images) if num_images else None,
                precision=float(hits / num_taken) if num_taken else None,
                rival=names[rival] if mistakes[rival] else None,
                rival_count=int(mistakes[rival]),
                counts=tuple(counts.tolist()),
            )
        )
    return results
