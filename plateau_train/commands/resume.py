"""Continue a run exactly where it stopped, or verify it."""

import logging
from pathlib import Path

from plateau_train.api import training
from plateau_train.config import BUDGETED, Resolved
from plateau_train.errors import PROGRAM
from plateau_train.process import cluster
from plateau_train.report.console import configure_logging, printable
from plateau_train.report.progress import RunReport
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import early_endings
from plateau_train.run.journal import RunTask
from plateau_train.run.reader import Run, describe_done
from plateau_train.training import setup
from plateau_train.training.devices import start_devices

log = logging.getLogger("plateau_train")


def resume(path: Path, overrides: Resolved) -> None:
    """Continue a run, and print every epoch, or that it is done; raises as ``training.resume``."""
    is_quiet = overrides.settings.run.quiet
    configure_logging(is_quiet=is_quiet)
    with cluster.join(overrides.settings.cluster):
        done = training.resume(path, overrides, start_devices, RunReport(is_quiet=is_quiet))
    if done is not None:
        _print_done(done, is_quiet=is_quiet)


def _print_done(task: RunTask, *, is_quiet: bool) -> None:
    run, settings = task.directory, task.resolved.settings
    epochs = settings.run.epochs
    log.info(f"{run.path} is done: {describe_done(task)}")
    if settings.optimizer.schedule not in BUDGETED and not early_endings(Run(run).histories):
        log.info(f"{PROGRAM} resume {run} --epochs {2 * epochs} trains longer")
    if is_quiet:
        print(printable(run.path))


def check(path: Path, overrides: Resolved) -> None:
    """Verify a run, change nothing, and print what is intact; raises as ``setup.check``."""
    for line in setup.check(RunDirectory.find(path), overrides):
        print(printable(line))
