"""List the runs of a folder: the progress, the accuracies and the status of each."""

import logging
from pathlib import Path

from plateau_train.api.listing import COLUMNS, FIELDS, list_runs
from plateau_train.report.console import Table, print_table, printable
from plateau_train.report.rows import Form, write_rows

log = logging.getLogger("plateau_train")


def print_runs(runs_dir: Path, form: Form | None) -> None:
    """Print the runs of a folder as a table or as rows, and warn of what is damaged in them."""
    runs = list_runs(runs_dir)
    if form is not None:
        write_rows(form, [row for run in runs for row in run.rows()], FIELDS)
    elif runs:
        print_table(Table(runs, COLUMNS))
    if problems := [printable(problem) for run in runs for problem in run.problems]:
        log.warning("\n".join(problems))
