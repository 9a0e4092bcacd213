"""Print the scores of a checkpoint: each split, each class, and the confusion matrix."""

import logging
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

from plateau_train import plots
from plateau_train.api.evaluation import CLASS_COLUMNS, ClassResult, Evaluation
from plateau_train.api.evaluation import evaluate as score_checkpoint
from plateau_train.config import Resolved
from plateau_train.report import console
from plateau_train.report.console import Column, Table
from plateau_train.report.rows import Form, write_rows
from plateau_train.run.directory import RunDirectory
from plateau_train.training.devices import start_devices

log = logging.getLogger("plateau_train")

# A larger confusion matrix is drawn, and not printed.
MOST_COLUMNS = 20


def evaluate(
    path: Path,
    places: Resolved,
    which: str,
    replica: int | None,
    output: Path | None,
    form: Form | None,
) -> None:
    """Score a checkpoint, draw its confusion matrix, and print the scores.

    ``output`` is the path of the picture, in the run folder by default.
    """
    if output is not None:
        plots.check_format(output)
    loading = partial(console.busy, "loading the data")
    evaluation = score_checkpoint(
        path, places, start_devices, which=which, replica=replica, loading=loading
    )
    path = RunDirectory(evaluation.run).confusion
    picture = plots.place(path, output, evaluation.plot())
    if form is None:
        print_evaluation(evaluation, picture)
    else:
        confusion, scores = evaluation.confusion.tolist(), evaluation.score_rows()
        write_rows(form, evaluation.class_rows(), scores=scores, confusion=confusion)


def print_evaluation(evaluation: Evaluation, picture: Path) -> None:
    """Print the scores, a table of the classes, and the confusion matrix if it fits."""
    scores = {
        split: f"loss {loss:.4f}, accuracy {accuracy:.4f} ({num_images:,} images)"
        for split, (loss, accuracy, num_images) in evaluation.scores.items()
    }
    run = {"run": f"{evaluation.run}, {evaluation.title}"}
    run |= {"data": f"{evaluation.dataset}; {evaluation.source}"}
    console.print_rows({**run, **scores, "plot": str(picture)})
    classes, caption = evaluation.classes, "test images of each class"
    console.print_table(Table(classes, CLASS_COLUMNS, caption))
    for is_numbered in (False, True):
        table = _confusion_table(classes, is_numbered=is_numbered)
        if len(classes) <= MOST_COLUMNS and console.fits_terminal(table):
            console.print_table(table)
            return
    log.info(f"the confusion matrix of {len(classes)} classes is in the picture")


def _confusion_table(classes: Sequence[ClassResult], *, is_numbered: bool) -> Table:
    """Return the table of the counts; numbers as column titles need less space than names."""
    titles = [f"{number}" if is_numbered else each.name for number, each in enumerate(classes)]
    columns = [Column(itemgetter(number), title, ",") for number, title in enumerate(titles, 1)]
    rows = [
        (f"{title} {each.name}" if is_numbered else title, *each.counts)
        for title, each in zip(titles, classes, strict=True)
    ]
    caption = "true classes in rows, predicted classes in columns"
    return Table(rows, [Column(itemgetter(0), "", is_number=False), *columns], caption)
