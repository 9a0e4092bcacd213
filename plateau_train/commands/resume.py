"""Continue a run exactly where it stopped, or verify it."""

import contextlib
import logging
from pathlib import Path

from plateau_train import plots
from plateau_train.config import Resolved
from plateau_train.errors import PROGRAM
from plateau_train.process import cluster
from plateau_train.report.console import configure_logging, printable
from plateau_train.report.progress import RunReport
from plateau_train.run.directory import RunDirectory
from plateau_train.run.journal import RunTask
from plateau_train.training import setup
from plateau_train.training.devices import start_devices

log = logging.getLogger("plateau_train")


def resume(path: Path, overrides: Resolved) -> None:
    """Continue a run from its newest intact checkpoint, or log that it is done.

    Only explicit overrides count. Nothing is written before everything is checked. Raises as
    ``setup.open_run``, and ``DataError`` for other data.
    """
    is_quiet = overrides.settings.run.quiet
    configure_logging(is_quiet=is_quiet)
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.join(overrides.settings.cluster))
        overrides = overrides.without_cluster()
        task: RunTask | None = None
        with cluster.fail_together():
            if cluster.is_leader():
                task = setup.open_run(RunDirectory.find(path), overrides, stack)
            # Before the first collective, which uses the devices.
            settings = overrides.settings if task is None else task.resolved.settings
            start_devices(settings.run.threads)
        is_over = task is not None and setup.is_done(task)
        resolved = setup.adopt(overrides, None if task is None or is_over else task.resolved)
        if resolved is not None:
            report = RunReport(is_quiet=is_quiet)
            setup.train_run(resolved, task, report, plots.save_run_plot, stack)
        elif task is not None:
            run, epochs = task.directory, task.resolved.settings.run.epochs
            log.info(f"{run.path} is done: all of its {epochs} epochs are trained")
            if task.resolved.settings.optimizer.schedule != "cosine":
                log.info(f"{PROGRAM} resume {run} --epochs {2 * epochs} trains longer")
            if is_quiet:
                print(printable(run.path))


def check(path: Path, overrides: Resolved) -> None:
    """Verify a run, change nothing, and print what is intact; raises as ``setup.check``."""
    for line in setup.check(RunDirectory.find(path), overrides):
        print(printable(line))
