"""Train every combination of some settings, and print the results, or verify a sweep."""

from collections.abc import Mapping
from pathlib import Path

from plateau_train import config
from plateau_train.api import sweeps
from plateau_train.api.sweeps import Sweep, picture_path, table_path
from plateau_train.config import Resolved
from plateau_train.errors import PROGRAM
from plateau_train.report import console
from plateau_train.report.progress import ProgramReport
from plateau_train.report.rows import Form, write_rows
from plateau_train.run.directory import SWEEP, RunDirectory, read_json
from plateau_train.run.environment import allow_open_files
from plateau_train.training import setup, sweep
from plateau_train.training.devices import start_devices
from plateau_train.training.sweep import SweepPlan, SweepRun


def start(cells: config.Sweep, metric: str | None, form: Form | None) -> None:
    """Train a grid in a new folder, and print its results; raises as ``sweeps.start``."""
    first = setup.localize(cells.cells[0])
    report = _SweepReport(is_quiet=first.settings.run.quiet)
    _prepare(first.settings.run.threads, len(cells.cells))
    report.print_results(sweeps.start(cells, metric, report, report.announce), form)


def resume(path: Path, overrides: Resolved) -> None:
    """Continue a sweep where it was stopped, and print its results."""
    report = _SweepReport(is_quiet=overrides.settings.run.quiet)
    report.print_results(sweeps.resume(path, overrides, _prepare, report, report.announce), None)


def check(path: Path, overrides: Resolved) -> None:
    """Verify every run of a sweep, and print what is intact; raises as ``setup.check``."""

    def print_check(_: SweepRun, run: RunDirectory) -> None:
        is_begun = sweep.has_begun(run)
        for line in setup.check(run, overrides) if is_begun else [f"{run}: not started"]:
            print(console.printable(line))

    sweep.visit_runs(RunDirectory(path), read_json(path / SWEEP, SweepPlan), print_check)


def _prepare(num_threads: int | None, num_runs: int) -> None:
    start_devices(num_threads)
    allow_open_files(num_runs)


class _SweepReport(ProgramReport):
    """Print the training of a sweep, its plan before it, and its results after it."""

    def __init__(self, *, is_quiet: bool) -> None:
        super().__init__(is_quiet=is_quiet)
        self._is_stopped = False
        console.configure_logging(is_quiet=is_quiet)

    def announce(self, rows: Mapping[str, str]) -> None:
        """Print what is about to be trained."""
        if not self.is_quiet:
            console.print_rows(rows, to_stderr=True)

    def on_stop(self, folder: Path, message: str, hint: str) -> None:
        """Print how far the sweep got."""
        super().on_stop(folder, message, hint)
        self._is_stopped = True

    def print_results(self, results: Sweep, form: Form | None) -> None:
        """Print the results, the best first, if it is done; if quiet, only the sweep's folder.

        The rows for other programs are printed of a sweep that was stopped, too.
        """
        folder = results.path
        if form is not None:
            write_rows(form, results.rows())
        elif self.is_quiet:
            print(console.printable(folder))
        elif not self._is_stopped:
            console.print_table(results.as_table())
            heat_map = {"heat map": str(picture_path(folder))} if len(results.varied) == 2 else {}
            best = RunDirectory(folder / results.ranked[0].name)
            console.print_rows(
                {"results": str(table_path(folder))} | heat_map | {"next": f"{PROGRAM} plot {best}"}
            )
