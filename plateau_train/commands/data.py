"""Prepare and describe data sets."""

from pathlib import Path

from plateau_train import data
from plateau_train.config import DataSettings


def prepare(settings: DataSettings, manual_dir: Path | None) -> None:
    """Prepare a data set, and print what was done."""
    print(data.prepare(settings, manual_dir))


def info(settings: DataSettings) -> None:
    """Print the number of images, the classes and the pixel values of a prepared data set."""
    for name, text in data.describe(settings).items():
        print(f"{name:<10} {text}")
