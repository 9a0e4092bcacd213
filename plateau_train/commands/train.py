"""Train the runs of one program in a new folder."""

import contextlib

from plateau_train import plots
from plateau_train.config import Resolved
from plateau_train.process import cluster
from plateau_train.report.console import configure_logging
from plateau_train.report.progress import RunReport
from plateau_train.training import setup
from plateau_train.training.devices import start_devices


def train(resolved: Resolved) -> None:
    """Train a run in a new folder.

    Everything that can be refused is refused before the folder is made. Raises
    ``NonFiniteLossError`` when no replica is finite any more; the epochs before it are kept.
    """
    is_quiet = resolved.settings.run.quiet
    configure_logging(is_quiet=is_quiet)
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.join(resolved.settings.cluster))
        own = setup.localize(resolved)
        start_devices(own.settings.run.threads)
        adopted = setup.adopt(own, own)
        assert adopted is not None
        setup.train_run(adopted, None, RunReport(is_quiet=is_quiet), plots.save_run_plot, stack)
