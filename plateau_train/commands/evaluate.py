"""Score a checkpoint again: loss and accuracy, each class, and what it is taken for."""

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
from plateau_train.report.console import Column, Report, printable
from plateau_train.run import checkpoint, environment
from plateau_train.run.checkpoint import BEST, Checkpoint
from plateau_train.run.directory import FIND_HINT, RunDirectory
from plateau_train.run.records import best_record
from plateau_train.training import setup

# The confusion matrix of more classes is in the picture alone.
MOST_COLUMNS = 20

# Two accuracies that differ by less are shares of the same number of images.
ROUNDING = 1e-6

DROP_ORDER = ("images", "precision")

NONE = "-"


class Score(NamedTuple):
    """Loss in nats and accuracy as a share of 1, over the images of a split."""

    loss: float
    accuracy: float
    num_images: int


Confusion = Int32[np.ndarray, "classes classes"]


def evaluate_run(
    path: Path,
    which: str,
    output: Path | None,
    asked: Resolved,
    report: Report,
    *,
    replica: int | None = None,
) -> None:
    """Print how well a checkpoint does on its run's own data, and draw what it confuses.

    ``which`` is best, last or an epoch's number; of several replicas the best one there is taken
    unless ``replica`` says which. Of what is asked only the folder of the data counts. Raises
    ``ConfigError`` for any other word or replica, ``RunError`` for a checkpoint that is not kept,
    and ``DataError`` for other data.
    """
    if not re.fullmatch(r"best|last|[0-9]{1,9}", which):
        raise ConfigError(
            f"--checkpoint must be best, last or the number of an epoch, got {which}",
            hint="leave it out to take the best one",
        )
    if output is not None:
        plots.check_format(output)  # now, not after all the work
    run = RunDirectory.find(path)
    found = find_checkpoint(run, which, report)
    found, chosen = take_replica(found, replica)
    manifest = found.manifest
    cache_dir = asked.settings.data.cache_dir
    settings = manifest.settings.data.model_copy(update={"cache_dir": cache_dir})
    if asked.is_explicit("data_dir"):
        settings = settings.model_copy(update={"data_dir": asked.settings.data.data_dir})
    dataset, _ = setup.load_again(run, settings, manifest.environment.dataset, report)
    if manifest.environment.threads is not None:
        environment.pin_threads(manifest.environment.threads)
    from plateau_train.training import loop  # only now, when the number of threads is fixed

    loop.enable_compilation_cache(cache_dir)
    scores, confusion = score(found, dataset)
    _compare(found, scores, report, is_replica=bool(chosen))

    title = f"{chosen}{'' if which.isdecimal() else f'{which} checkpoint, '}epoch {manifest.epoch}"
    names = [printable(name) for name in dataset.class_names]
    heading = (
        f"{printable(run.path.resolve().name)}\n{title}: "
        f"test accuracy {scores['test'].accuracy:.4f} on {settings.title}"
    )
    save = partial(plots.save_confusion, confusion=confusion, class_names=names, heading=heading)
    picture = plots.place(run.confusion, output, save)
    report.rows(
        {
            "run": f"{run.path}, {title}",
            "data": f"{settings.title}; {dataset.source}",
            **{
                split: f"loss {loss:.4f}, accuracy {accuracy:.4f} ({num_images:,} images)"
                for split, (loss, accuracy, num_images) in scores.items()
            },
            "plot": str(picture),
        }
    )
    report.table(
        per_class(confusion, names), caption="test images of each class", drop_order=DROP_ORDER
    )
    _show_confusion(confusion, names, report)


def find_checkpoint(run: RunDirectory, which: str, report: Report) -> Checkpoint:
    """Read the best checkpoint of a run, the newest sound one, or that of an epoch."""
    kept = checkpoint.candidates(run.checkpoints)
    if not kept:
        raise RunError(
            f"{run.path} has no checkpoint",
            hint=FIND_HINT,
        )
    if which == "best":
        return checkpoint.read_checkpoint(run.checkpoints / BEST)
    if which == "last":
        found, reasons = checkpoint.read_newest(run.checkpoints)
        if found is None:
            raise RunError(*reasons, hint="restore a checkpoint from a copy")
        if reasons:
            report.warn(
                *reasons, f"The newest sound checkpoint is of epoch {found.manifest.epoch}."
            )
        return found
    return _of_epoch(run, int(which), kept)


def take_replica(found: Checkpoint, replica: int | None) -> tuple[Checkpoint, str]:
    """Return the checkpoint of one replica as if it had been trained alone, and which it is.

    Raises ``ConfigError`` for one that there is not, ``RunError`` for one that had diverged.
    """
    manifest = found.manifest
    seeds, final = manifest.settings.run.seeds, {row.replica: row for row in manifest.final}
    if len(seeds) == 1 and not replica:
        return found, ""
    if replica is not None and replica >= len(seeds):
        raise ConfigError(
            f"--replica {replica}, and the run has {len(seeds)}, counted from 0",
            hint="leave it out to take the best one",
        )
    best = best_record(manifest.final).replica
    number = best if replica is None else replica
    if number not in final:
        raise RunError(
            f"replica {number} (seed {seeds[number]}) had diverged by epoch {manifest.epoch}",
            hint=f"give another --replica, such as {best}, the best one",
        )
    alone = manifest.settings.run.model_copy(update={"seed": (seeds[number],)})
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
    from plateau_train.numerics.program import Program, count_confusion, evaluate
    from plateau_train.training import loop

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


def _compare(
    found: Checkpoint, scores: Mapping[str, Score], report: Report, *, is_replica: bool
) -> None:
    """Say so where the scores are not those that the run has recorded for the epoch."""
    why = "the machine, the devices, the versions or the number of threads are others"
    if is_replica:
        why = f"alone it is summed in another order than among the replicas, or {why}"
    for split, loss, accuracy in found.manifest.records[-1].scores():
        if split not in scores:
            continue
        now = scores[split]
        if abs(now.accuracy - accuracy) > ROUNDING:
            report.warn(
                f"The {split} accuracy is {now.accuracy:.6f}, and the run has recorded "
                f"{accuracy:.6f}: {why}."
            )
        elif now.loss != loss:
            report.say(f"{split} loss {now.loss!r}, recorded as {loss!r}: {why}")


def per_class(confusion: Confusion, names: Sequence[str]) -> list[Column]:
    """Lay out a row a class: how many there are, are found, are truly it, and its rival."""
    images, taken, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    errors = confusion - np.diag(hits)
    rivals = errors.argmax(axis=1)
    return [
        Column("class", names, is_number=False),
        Column("images", [f"{count:,}" for count in images]),
        Column("accuracy", list(map(_share, hits, images))),
        Column("precision", list(map(_share, hits, taken))),
        Column(
            "most often taken for",
            [
                f"{names[rival]} ({row[rival]:,})" if row[rival] else NONE
                for row, rival in zip(errors, rivals, strict=True)
            ],
            is_number=False,
        ),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else NONE


def _show_confusion(confusion: Confusion, names: Sequence[str], report: Report) -> None:
    """Print the confusion matrix with the names of its columns, or with numbers, as fits."""
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
    for rows, heads in ((names, names), (numbered, map(str, range(len(names))))):
        columns = [Column("", rows, is_number=False)]
        columns += [
            Column(head, [f"{count:,}" for count in counts])
            for head, counts in zip(heads, confusion.T, strict=True)
        ]
        if len(names) <= MOST_COLUMNS and report.fits(columns):
            report.table(
                columns, caption="true classes in rows, what they are taken for in columns"
            )
            return
    report.say(f"the confusion matrix of {len(names)} classes is in the picture")
