"""Train the runs of one program in a new folder, or take a single step without one."""

from functools import partial

from plateau_train.api import training
from plateau_train.config import Resolved
from plateau_train.process import cluster
from plateau_train.report.console import (
    busy,
    configure_logging,
    make_console,
    print_rows,
    print_text,
)
from plateau_train.report.progress import RunReport, describe_training
from plateau_train.training.devices import start_devices

NARROW, WIDE = 80, 130  # the least and the largest width of the table of layers


def train(resolved: Resolved) -> None:
    """Train a run in a new folder, and print every epoch; raises as ``training.train``."""
    is_quiet = resolved.settings.run.quiet
    configure_logging(is_quiet=is_quiet)
    with cluster.join(resolved.settings.cluster):
        training.train(resolved, start_devices, RunReport(is_quiet=is_quiet))


def dry_run(resolved: Resolved) -> None:
    """Print what would be trained, and what a step takes; raises as ``training.dry_run``."""
    console = make_console()
    width = max(NARROW, min(console.width, WIDE))
    loading = partial(busy, "loading the data")
    done = training.dry_run(resolved, start_devices, width=width, loading=loading)
    trial, steps = done.trial, done.info.steps_per_epoch
    flops = "not counted on this device" if done.flops is None else f"{done.flops:,.0f}"
    losses = (f"{max(values):.4f}" for values in (trial.loss, trial.test_loss))
    step, evaluation = (
        f"loss {loss}, {1000 * seconds:,.1f} ms"
        for loss, seconds in zip(losses, (trial.step_seconds, trial.evaluate_seconds), strict=True)
    )
    print_text(done.layers)
    print_rows(
        describe_training(done.info)
        | {
            "parameters": f"{done.size.num_params:,}",
            "activations": f"{done.size.activation_bytes:,} bytes per image, kept for its gradient",
            "memory": done.info.memory,
            "FLOPs": f"{flops} per step, in the compiled program",
            "one step": f"{step}; {steps:,} steps an epoch",
            "evaluation": f"{evaluation} for the test images",
            "written": "nothing: without --dry-run it is trained",
        }
    )
