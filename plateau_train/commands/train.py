"""Train the runs of one program in a new folder."""

from plateau_train.api import training
from plateau_train.config import Resolved
from plateau_train.process import cluster
from plateau_train.report.console import configure_logging
from plateau_train.report.progress import RunReport
from plateau_train.training.devices import start_devices


def train(resolved: Resolved) -> None:
    """Train a run in a new folder, and print every epoch; raises as ``training.train``."""
    is_quiet = resolved.settings.run.quiet
    configure_logging(is_quiet=is_quiet)
    with cluster.join(resolved.settings.cluster):
        training.train(resolved, start_devices, RunReport(is_quiet=is_quiet))
