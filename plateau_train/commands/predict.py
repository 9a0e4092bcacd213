"""plateau-train predict: print the classes of images."""

from collections.abc import Sequence
from pathlib import Path

from plateau_train.api import predictions
from plateau_train.config import Resolved
from plateau_train.report.console import print_table
from plateau_train.report.rows import Form, write_rows
from plateau_train.training.devices import start_devices


def print_predictions(
    run: Path,
    images: Sequence[Path],
    places: Resolved,
    checkpoint: str,
    replica: int | None,
    top: int,
    form: Form | None,
    *,
    resize: bool,
) -> None:
    """Print the ``top`` most likely classes of each image, with their probabilities."""
    predicted = predictions.predict(
        run, images, places, start_devices, which=checkpoint, replica=replica, resize=resize
    )
    if form is None:
        print_table(predicted.table(top=top))
    else:
        write_rows(form, predicted.rows(top=top))
