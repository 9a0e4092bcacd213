"""Continue a run exactly where it stopped, or verify it."""

import contextlib
import logging
from functools import partial
from pathlib import Path

from plateau_train import plots
from plateau_train.config import Resolved
from plateau_train.process import cluster
from plateau_train.report.console import configure_logging
from plateau_train.report.progress import RunReport
from plateau_train.run.directory import RunDirectory
from plateau_train.training import setup
from plateau_train.training.loop import RunTask
from plateau_train.training.setup import OpenedRun

log = logging.getLogger("plateau_train")


def resume(path: Path, overrides: Resolved) -> None:
    """Continue a run from its newest sound checkpoint, or log that it is done.

    Only explicit overrides count. Nothing is written before everything is settled. Raises as
    ``setup.open_run``, and ``DataError`` for other data.
    """
    is_quiet = overrides.settings.run.quiet
    configure_logging(is_quiet=is_quiet)
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.join(overrides.settings.cluster))
        overrides = overrides.without_cluster()
        opened: OpenedRun | None = None
        with cluster.fail_together():
            if cluster.is_leader():
                opened = setup.open_run(RunDirectory.find(path), overrides, stack)
            # Before the first collective, which uses the devices.
            setup.pin_threads(overrides if opened is None else opened.resolved)
        is_over = opened is not None and setup.is_done(opened)
        resolved = setup.adopt(overrides, None if opened is None or is_over else opened.resolved)
        if resolved is None:
            if opened is not None:
                run, epochs = opened.directory, opened.resolved.settings.run.epochs
                further = f"plateau-train resume {run} --epochs {2 * epochs} goes further"
                log.info(f"{run.path} is done, with all of its {epochs} epochs; {further}")
                if is_quiet:
                    print(run.path)
            return
        directory, known = (opened.directory, opened.data) if opened else (None, None)
        loaded = setup.load_data(resolved.settings, directory, known)

        def prepare() -> RunTask:
            assert opened is not None
            setup.write_settings(opened.directory, resolved)
            return RunTask(resolved, opened.directory, opened.previous)

        report = partial(RunReport, is_quiet=is_quiet)
        setup.train_run(resolved, loaded, prepare, report, plots.save_run_plot)


def check(path: Path, overrides: Resolved) -> None:
    """Verify a run, change nothing, and print what is sound; raises as ``setup.check``."""
    for line in setup.check(RunDirectory.find(path), overrides):
        print(line)
