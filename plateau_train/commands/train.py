"""Train the runs of one program in a new folder."""

import contextlib

from plateau_train import plots
from plateau_train.config import Resolved
from plateau_train.process import cluster
from plateau_train.report.console import configure_logging
from plateau_train.report.progress import RunReport
from plateau_train.training import setup
from plateau_train.training.loop import Callbacks, NoCallbacks, RunTask, fit


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
        adopted = setup.name_dataset(adopted, dataset)
        program = setup.make_program([adopted.settings], dataset)
        task = RunTask(adopted)
        callbacks: Callbacks = NoCallbacks()
        with cluster.fail_together():
            if cluster.is_leader():
                directory = setup.create_run(adopted, dataset, stack)
                task = RunTask(adopted, directory)
                callbacks = RunReport(is_quiet=is_quiet)
                setup.point_latest(directory)
        with setup.safe_epoch_in_hints(task.directory):
            fit([task], program, facts, callbacks, plots.save_run_plot)
