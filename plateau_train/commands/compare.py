"""Print a comparison of runs: their results, the differences, and the settings that differ."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from plateau_train import plots
from plateau_train.api import comparison
from plateau_train.api.comparison import NAME, Comparison
from plateau_train.config import FigureOptions
from plateau_train.report import console
from plateau_train.report.console import Column
from plateau_train.report.rows import Form, write_rows

log = logging.getLogger("plateau_train")


def compare(
    paths: Sequence[Path],
    level: float | None,
    picture: Path | None,
    options: FigureOptions,
    form: Form | None,
    *,
    pool: bool,
) -> None:
    """Compare runs, draw them into ``picture`` if given, and print the tables or the rows."""
    if picture is not None:
        plots.check_format(picture)
    compared = comparison.compare(paths, level=level, pool=pool)
    if picture is not None:
        plots.save(picture, comparison.draw(compared, options))
    if form is None:
        print_comparison(compared)
    else:
        write_rows(form, compared.result_rows(), differences=compared.difference_rows())
    if picture is not None and form is None:
        console.print_rows({"plot": str(picture)})


def print_comparison(compared: Comparison) -> None:
    """Print a table of results, one of differences, and one of settings."""
    results, differences, settings = compared.tables()
    log.info(results.caption)
    console.print_table(results._replace(caption=""))
    console.print_table(differences)
    if len(settings.columns) == 1:
        log.info("all settings that affect results are the same")
        return
    if not console.fits_terminal(settings):
        line = Column("differing", "settings", _command_line, is_number=False)
        settings = settings._replace(columns=[NAME, line])
    console.print_table(settings)


def _command_line(settings: Mapping[str, str]) -> str:
    return "  ".join(f"{flag} {value}" for flag, value in settings.items())
