"""Train the runs of one program in a new folder."""

import contextlib
from functools import partial

from plateau_train import plots
from plateau_train.config import Resolved
from plateau_train.process import cluster
from plateau_train.report.console import configure_logging
from plateau_train.report.progress import RunReport
from plateau_train.training import setup
from plateau_train.training.loop import RunTask


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
        setup.pin_threads(own)
        adopted = setup.adopt(own, own)
        assert adopted is not None
        dataset, facts = setup.load_data(adopted.settings)
        named = setup.name_dataset(adopted, dataset)

        def prepare() -> RunTask:
            return RunTask(named, setup.create_run(named, dataset, stack))

        report = partial(RunReport, is_quiet=is_quiet)
        setup.train_run(named, (dataset, facts), prepare, report, plots.save_run_plot)
