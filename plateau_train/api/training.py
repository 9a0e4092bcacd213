"""Train a new run, or continue one."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from plateau_train import plots
from plateau_train.config import Resolved
from plateau_train.data.splits import Progress
from plateau_train.numerics.model import ModelSize, measure
from plateau_train.process import cluster
from plateau_train.run.directory import RunDirectory
from plateau_train.run.info import TrainingInfo
from plateau_train.run.journal import RunTask
from plateau_train.training import models, setup
from plateau_train.training.loop import Callbacks, describe_training
from plateau_train.training.program import Program, Trial

StartDevices = Callable[[int | None], None]  # with a number of threads


def train(
    resolved: Resolved, start_devices: StartDevices, callbacks: Callbacks
) -> RunDirectory | None:
    """Train a run in a new folder, and return it; None in the processes that write nothing.

    Everything that can be refused is refused before the folder is made. Raises
    ``NonFiniteLossError`` when no replica is finite any more; the epochs before it are kept.
    """
    with contextlib.ExitStack() as stack:
        own = setup.localize(resolved)
        start_devices(own.settings.run.threads)
        adopted = setup.adopt(own, own)
        assert adopted is not None
        model = adopted.settings.model.model  # which this process may not have been given
        with cluster.fail_together():
            setup.permit_new(own.replace("model", model, own.origin("model")))
        return setup.train_run(adopted, None, callbacks, plots.save_run_plot, stack, is_new=True)


class DryRun(NamedTuple):
    """What would be trained, its layers, and what a step and an evaluation take."""

    info: TrainingInfo
    layers: str  # as Flax shows them
    size: ModelSize
    flops: float | None  # of a step on each device, as XLA counts them in the compiled program
    trial: Trial


def dry_run(
    resolved: Resolved,
    start_devices: StartDevices,
    *,
    width: int,
    loading: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
) -> DryRun:
    """Take one step and evaluate once, and write no run; ``width`` is that of the text.

    Raises as ``train`` does before its folder is made.
    """
    own = setup.localize(resolved)
    start_devices(own.settings.run.threads)
    setup.permit_new(own)
    with loading() as progress:
        dataset, _ = setup.load_data(own.settings, progress=progress)
    own = setup.name_dataset(own, dataset)
    program = Program([own.settings], dataset)
    network, shape = program.replicas.spec.network, dataset.image_shape
    with models.explained(own.settings.model):
        trial, flops = program.try_step(), program.count_flops()
        layers = network.tabulate(shape, width)
    folder = RunDirectory(own.settings.run.runs_dir)  # which a run would be in
    info = describe_training(own.settings, folder, -1, program)
    return DryRun(info, layers, measure(network, shape), flops, trial)


def resume(
    path: Path, overrides: Resolved, start_devices: StartDevices, callbacks: Callbacks
) -> RunTask | None:
    """Continue a run from its newest intact checkpoint; return it if it is done already.

    Only explicit overrides count. Nothing is written before everything is checked. Raises as
    ``setup.open_run`` and ``setup.check_run``, and ``DataError`` for other data.
    """
    with contextlib.ExitStack() as stack:
        overrides = overrides.without_cluster()
        task: RunTask | None = None
        with cluster.fail_together():
            if cluster.is_leader():
                task = setup.open_run(RunDirectory.find(path), overrides, stack)
            # Before the first collective, which uses the devices.
            settings = overrides.settings if task is None else task.resolved.settings
            start_devices(settings.run.threads)
            if task is not None:
                setup.check_run(task, overrides)
        is_over = task is not None and setup.is_done(task)
        resolved = setup.adopt(overrides, None if task is None or is_over else task.resolved)
        if resolved is None:
            return task
        with cluster.fail_together():
            model, is_named = resolved.settings.model, overrides.is_typed("model")
            models.permit(model, overrides.own_cache_dir, is_named=is_named)
        setup.train_run(resolved, task, callbacks, plots.save_run_plot, stack, is_new=False)
    return None
