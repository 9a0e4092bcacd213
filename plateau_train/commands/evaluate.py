"""Score a checkpoint again: loss and accuracy, each class, and the confusion matrix."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from plateau_train import plots
from plateau_train.config import Resolved
from plateau_train.data.splits import Dataset
from plateau_train.errors import ConfigError, RunError
from plateau_train.numerics.program import Program, count_confusion, evaluate
from plateau_train.report import console
from plateau_train.report.console import Column, Table, printable
from plateau_train.run import checkpoint, environment
from plateau_train.run.checkpoint import BEST, Checkpoint
from plateau_train.run.directory import FIND_HINT, RunDirectory
from plateau_train.run.records import best_of
from plateau_train.training import loop, setup

logger = logging.getLogger("plateau_train")

# A larger confusion matrix is drawn, and not printed.
MOST_COLUMNS = 20

# Accuracies are fractions of the same number of images: a smaller difference is rounding.
ROUNDING = 1e-6

Confusion = Int32[np.ndarray, "classes classes"]  # true classes in rows, predicted ones in columns


class Score(NamedTuple):
    """Loss in nats and accuracy as a fraction of 1, over the images of a split."""

    loss: float
    accuracy: float
    num_images: int


class ClassResult(NamedTuple):
    """How often the test images of a class are recognized.

    ``accuracy`` is the fraction of the images of the class, ``precision`` that of the images that
    are taken for it; of none, it is None.
    """

    name: str
    num_images: int
    accuracy: float | None
    precision: float | None
    rival: str | None  # the class that its images are most often taken for, and how many are
    counts: tuple[int, ...]  # of its images, by the class that they are taken for


class Evaluation(NamedTuple):
    """The scores of a checkpoint on its run's own data, and the picture of its confusion matrix."""

    run: str
    checkpoint: str  # which one it is, in words
    data: str
    scores: Mapping[str, Score]  # of each split
    classes: Sequence[ClassResult]
    picture: Path


CLASS_COLUMNS = (
    Column("name", "class", is_number=False),
    Column("num_images", "images", ","),
    Column("accuracy", "accuracy", ".4f"),
    Column("precision", "precision", ".4f"),
    Column("rival", "most often taken for", is_number=False),
)


def evaluate_run(
    path: Path,
    overrides: Resolved,
    *,
    which: str = "best",
    replica: int | None = None,
    output: Path | None = None,
) -> Evaluation:
    """Score a checkpoint on its run's own data, and draw its confusion matrix.

    ``which`` is best, last or the number of an epoch. Of several replicas the default is the best
    one. Only the folders of the data in ``overrides`` are used. ``output`` is the path of the
    picture, in the run folder by default. Raises ``ConfigError`` for any other word or replica,
    ``RunError`` for a checkpoint that is not kept, and ``DataError`` for other data.
    """
    if not re.fullmatch(r"best|last|[0-9]{1,9}", which):
        raise ConfigError(
            f"--checkpoint must be best, last or the number of an epoch, got {which}",
            hint="leave it out to take the best one",
        )
    if output is not None:
        plots.check_format(output)
    run = RunDirectory.find(path)
    found, chosen = take_replica(find_checkpoint(run, which), replica)
    manifest = found.manifest
    cache_dir = overrides.settings.data.cache_dir
    settings = manifest.settings.data.model_copy(update={"cache_dir": cache_dir})
    if overrides.is_explicit("data_dir"):
        settings = settings.model_copy(update={"data_dir": overrides.settings.data.data_dir})
    dataset, _ = setup.load_again(run, settings, manifest.environment.dataset, console.Report())
    if manifest.environment.threads is not None:
        environment.pin_threads(manifest.environment.threads)
    loop.enable_compilation_cache(cache_dir)
    scores, confusion = score(found, dataset)
    compare_scores(found, scores, is_replica=bool(chosen))
    names = [printable(name) for name in dataset.class_names]
    title = f"{chosen}{'' if which.isdecimal() else f'{which} checkpoint, '}epoch {manifest.epoch}"
    accuracy = f"test accuracy {scores['test'].accuracy:.4f} on {settings.title}"
    heading = f"{printable(run.path.resolve().name)}\n{title}: {accuracy}"
    save = partial(plots.save_confusion, confusion=confusion, class_names=names, heading=heading)
    picture = plots.place(run.confusion, output, save)
    data = f"{settings.title}; {dataset.source}"
    return Evaluation(str(run.path), title, data, scores, score_classes(confusion, names), picture)


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the scores, a table of the classes, and the confusion matrix if it fits."""
    scores = {
        split: f"loss {loss:.4f}, accuracy {accuracy:.4f} ({num_images:,} images)"
        for split, (loss, accuracy, num_images) in evaluation.scores.items()
    }
    console.print_rows(
        {
            "run": f"{evaluation.run}, {evaluation.checkpoint}",
            "data": evaluation.data,
            **scores,
            "plot": str(evaluation.picture),
        }
    )
    classes = evaluation.classes
    caption = "test images of each class"
    console.print_table(Table(classes, CLASS_COLUMNS, caption, ("images", "precision")))
    if len(classes) <= MOST_COLUMNS:
        numbered = [each._replace(name=f"{i} {each.name}") for i, each in enumerate(classes)]
        matrix = _confusion_table(classes, [each.name for each in classes])
        numbers = _confusion_table(numbered, [str(i) for i in range(len(classes))])
        for table in (matrix, numbers):
            if console.fits_terminal(table):
                console.print_table(table)
                return
    logger.info(f"the confusion matrix of {len(classes)} classes is in the picture")


def _confusion_table(classes: Sequence[ClassResult], titles: Sequence[str]) -> Table:
    columns = [Column("counts", title, ",", item=number) for number, title in enumerate(titles)]
    caption = "true classes in rows, what they are taken for in columns"
    return Table(classes, [Column("name", "", is_number=False), *columns], caption)


def find_checkpoint(run: RunDirectory, which: str) -> Checkpoint:
    """Read the best checkpoint of a run, the newest sound one, or that of an epoch."""
    kept = checkpoint.candidates(run.checkpoints)
    if not kept:
        raise RunError(f"{run.path} has no checkpoint", hint=FIND_HINT)
    if which == "best":
        return checkpoint.read_checkpoint(run.checkpoints / BEST)
    if which == "last":
        found, reasons = checkpoint.read_newest(run.checkpoints)
        if found is None:
            raise RunError(*reasons, hint="restore a checkpoint from a copy")
        if reasons:
            reasons.append(f"The newest sound checkpoint is of epoch {found.manifest.epoch}.")
            logger.warning("\n".join(reasons))
        return found
    return _of_epoch(run, int(which), kept)


def take_replica(found: Checkpoint, replica: int | None) -> tuple[Checkpoint, str]:
    """Return the checkpoint of one replica as if it had been trained alone, and which it is.

    Raises ``ConfigError`` for one that there is not, ``RunError`` for one that had diverged.
    """
    manifest = found.manifest
    seeds, final = manifest.settings.run.seeds, {row.replica: row for row in manifest.final}
    if seeds is None and not replica:
        return found, ""
    seeds = manifest.settings.run.replica_seeds
    if replica is not None and replica >= len(seeds):
        raise ConfigError(
            f"--replica {replica}, and the run has {len(seeds)}, counted from 0",
            hint="leave it out to take the best one",
        )
    best = best_of(manifest.final).replica
    number = best if replica is None else replica
    if number not in final:
        raise RunError(
            f"replica {number} (seed {seeds[number]}) had diverged by epoch {manifest.epoch}",
            hint=f"give another --replica, such as {best}, the best one",
        )
    alone = manifest.settings.run.model_copy(update={"seed": seeds[number], "seeds": None})
    manifest = manifest.model_copy(
        update={
            "settings": manifest.settings.model_copy(update={"run": alone}),
            "records": tuple(row for row in manifest.records if row.replica == number),
        }
    )
    arrays = {name: array[number] for name, array in found.arrays.items()}
    which = f"replica {number}, seed {seeds[number]}"
    best_of_all = f", the best of {len(seeds)}" if replica is None and len(seeds) > 1 else ""
    return Checkpoint(manifest, arrays), f"{which}{best_of_all}: "


def _of_epoch(run: RunDirectory, epoch: int, kept: Sequence[Path]) -> Checkpoint:
    """Read the checkpoint of an epoch, whichever of the files that are kept it is."""
    epochs, reasons = set(), []
    for path in kept:
        try:
            found = checkpoint.read_checkpoint(path)
        except RunError as error:
            reasons += error.problems
            continue
        if found.manifest.epoch == epoch:
            return found
        epochs.add(found.manifest.epoch)
    kept_epochs = ", ".join(map(str, sorted(epochs))) or "none"
    raise RunError(
        f"{run.path} keeps no checkpoint of epoch {epoch}; sound are those of: {kept_epochs}",
        *reasons,
        hint="give one of these, best or last to --checkpoint",
    )


def score(found: Checkpoint, dataset: Dataset) -> tuple[dict[str, Score], Confusion]:
    """Score the held-out images, if there are any, and the test images; count the confusions."""
    settings = found.manifest.settings
    program = Program.from_config(settings, num_classes=len(dataset.class_names))
    params = loop.restore_params(found)
    test = loop.on_device(dataset.test)
    splits = {"test": test}
    if dataset.val is not None:
        splits = {"val": loop.on_device(dataset.val), "test": test}
    scores = {}
    for name, split in splits.items():
        loss, accuracy = map(float, evaluate(program, params, split))
        scores[name] = Score(loss, accuracy, len(split.labels))
    return scores, np.asarray(count_confusion(program, params, test))


def compare_scores(found: Checkpoint, scores: Mapping[str, Score], *, is_replica: bool) -> None:
    """Log where the scores are not those that the run has recorded for the epoch.

    Another accuracy is a warning; another loss is expected on another machine.
    """
    why = "the machine, the devices, the versions or the number of threads differ"
    if is_replica:
        why = f"alone it is summed in another order than among the replicas, or {why}"
    for split, loss, accuracy in found.manifest.records[-1].scores():
        if split not in scores:
            continue
        now = scores[split]
        if abs(now.accuracy - accuracy) > ROUNDING:
            logger.warning(
                f"The {split} accuracy is {now.accuracy:.6f}, and the run has recorded "
                f"{accuracy:.6f}: {why}."
            )
        elif now.loss != loss:
            logger.info(f"{split} loss {now.loss!r}, recorded as {loss!r}: {why}")


def score_classes(confusion: Confusion, names: Sequence[str]) -> list[ClassResult]:
    """Count how often the images of each class are recognized, and what they are taken for."""
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
                rival=f"{names[rival]} ({mistakes[rival]:,})" if mistakes[rival] else None,
                counts=tuple(counts.tolist()),
            )
        )
    return results
