"""Prepare and describe data sets."""

from pathlib import Path

from plateau_train import data
from plateau_train.config import DataSettings
from plateau_train.report.console import busy, printable


def prepare(settings: DataSettings, manual_dir: Path | None) -> None:
    """Prepare a data set, and print what was done."""
    with busy("preparing the data"):
        done = data.prepare(settings, manual_dir)
    print(printable(done))


def info(settings: DataSettings) -> None:
    """Print the number of images, the classes and the pixel values of a prepared data set."""
    with busy("loading the data") as progress:
        facts = data.describe(settings, progress)
    for name, text in facts.items():
        print(printable(f"{name:<10} {text}"))
