"""plateau-train export: write a run for other programs."""

from pathlib import Path

from plateau_train.api import exports
from plateau_train.config import Resolved
from plateau_train.report.console import printable
from plateau_train.training.devices import start_devices


def print_export(
    run: Path,
    places: Resolved,
    export_format: str,
    checkpoint: str,
    replica: int | None,
    output: Path | None,
) -> None:
    """Write an export, and print its path."""
    path = exports.export(
        run, export_format, places, start_devices, output, which=checkpoint, replica=replica
    )
    print(printable(path))
