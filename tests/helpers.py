"""What several test files share: small settings, images, specs, and trainings in this process."""

import contextlib
import io
import math
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from plateau_train import cli, config, data
from plateau_train.commands.resume import resume
from plateau_train.commands.train import train
from plateau_train.config import RawValue, Resolved, Settings
from plateau_train.data import garments
from plateau_train.numerics.replicas import Replicas, make_mesh
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import Examples, StepRecord, TrainState
from plateau_train.run import history, storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import History
from plateau_train.run.reader import Run
from plateau_train.run.records import Drop, Ending, EpochRecord, ObservedValue, RunWarning
from plateau_train.training import loop
from plateau_train.training.models import load_network
from plateau_train.training.program import EpochArrays, Program
from plateau_train.training.time_limit import TimeLimit

# A process draws the images of equal runs once.
garments.draw = lru_cache(maxsize=8)(garments.draw)

# A run of seconds on the built-in data; tests add to it.
SMALL = (
    "--dataset=garments", "--train-examples=600", "--test-examples=300", "--batch-size=50",
    "--hidden-sizes=16", "--accumulation-size=4", "--patience=2", "--learning-rate=0.03",
)  # fmt: skip
SMALL_STEPS = 12  # per epoch

# The original files of Fashion-MNIST, which are not part of the project.
ORIGINALS = Path(__file__).parents[2] / "shared" / "fashion_mnist"

# Sums in another order differ in the last places of float32. After some dozen steps a loss differs
# by less than this, relatively; the difference grows from step to step.
TOLERANCE = 1e-4
ONE_IMAGE = 1.001 / 300  # of the test images of a small run, as a fraction

UNLIMITED = TimeLimit(config.RunSettings())

IMAGE_SHAPE = (4, 4, 1)
NUM_CLASSES = 3


def command(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run plateau-train in a process of its own, with no terminal and no network.

    It is forked, which saves the seconds of its imports. Of the variables that JAX reads when it is
    imported, only JAX_NUM_CPU_DEVICES has an effect.
    """
    import faults  # its imports need the command line, which not all tests need

    variables = os.environ | {"TFDS_DATA_DIR": str(Path(cwd) / "no-data")} | environment
    finished = faults.shared().run(Path(cwd), *arguments, draws=True, environment=variables)
    return subprocess.CompletedProcess(
        list(map(str, arguments)), finished.code, finished.stdout, finished.stderr
    )


def call(*words: object) -> str:
    """Run a command in this process, and return what it prints on standard output."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr("sys.argv", ["plateau-train", *map(str, words)])
        assert cli.main() == 0
    return output.getvalue()


def resolve(**values: str) -> Resolved:
    """Resolve settings from the texts of flags."""
    return config.resolve({key: RawValue(text, "flag") for key, text in values.items()})


def resolve_small(**values: str) -> Resolved:
    """Resolve the settings of a small run, changed by the texts of flags."""
    pairs = (flag.removeprefix("--").split("=") for flag in SMALL)
    given = {name.replace("-", "_"): text for name, text in pairs}
    return resolve(**given | values)


def train_run(folder: Path, **values: str) -> Run:
    """Train a small run in this process, as the command does."""
    train(resolve_small(runs_dir=str(folder), **values))
    return Run(RunDirectory.find(folder / "latest"))


def resume_run(run: Run, **values: str) -> Run:
    """Continue a run in this process, as the command does."""
    resume(run.directory.path, resolve(**values))
    return Run(run.directory)


class EpochResult(NamedTuple):
    """What a small run recorded of an epoch, and the arrays."""

    records: Sequence[EpochRecord]
    events: Sequence[Drop | Ending | RunWarning]
    arrays: EpochArrays


def train_epochs(**values: str) -> list[EpochResult]:
    """Train a small run in this process, without a folder."""
    settings = resolve_small(**values).settings
    return list(iterate_epochs(Program([settings], data.load(settings.data))))


def iterate_epochs(
    program: Program, first_epoch: int = 0, state: TrainState | None = None
) -> Iterator[EpochResult]:
    """Yield the result of each epoch of the only run of a program."""
    silent = loop.NoCallbacks()
    epochs = loop.train(
        program, first_epoch, state, silent.on_epoch_start, silent.on_chunk, UNLIMITED
    )
    for (lines,), arrays in epochs:
        yield EpochResult(lines.records, lines.events, arrays)


def records_of(results: Sequence[EpochResult]) -> list[EpochRecord]:
    return [record for result in results for record in result.records]


def histories_of(results: Sequence[EpochResult]) -> list[History]:
    """Return the replicas of a training without a folder."""
    events = [event for result in results for event in result.events]
    return history.make_histories(records_of(results), events, Path())


def assert_same_history(actual: History, expected: History) -> None:
    """Assert that two replicas have the same waits and drops, and the same metrics but rounding."""
    assert [(drop.step, drop.scale_after) for drop in actual.drops] == [
        (drop.step, drop.scale_after) for drop in expected.drops
    ]
    for record, other in zip(actual.records, expected.records, strict=True):
        for name in ("seed", "epoch", "wait", "cooldown"):
            assert getattr(record, name) == getattr(other, name), name
        for (split, loss, accuracy), (_, other_loss, other_accuracy) in zip(
            record.scores(), other.scores(), strict=True
        ):
            assert loss == pytest.approx(other_loss, rel=TOLERANCE), split
            assert accuracy == pytest.approx(other_accuracy, abs=ONE_IMAGE), split
        for observed, other_observed in zip(record.observations, other.observations, strict=True):
            assert observed.step == other_observed.step
            assert observed.value == pytest.approx(other_observed.value, rel=TOLERANCE)
        assert record.scale == pytest.approx(other.scale, rel=1e-6)


def make_examples(num_examples: int, seed: int = 0) -> Examples:
    """Draw images of ``IMAGE_SHAPE`` and their labels at random."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (num_examples, *IMAGE_SHAPE), np.uint8)
    labels = random.integers(0, NUM_CLASSES, num_examples)
    return Examples(jnp.asarray(images), jnp.asarray(labels, jnp.int32))


def make_settings(
    *,
    seed: tuple[int, ...] = (0,),
    batch_size: int = 8,
    hidden_sizes: tuple[int, ...] = (16,),
    optimizer: config.OptimizerSettings | None = None,
    **plateau: Any,
) -> Settings:
    """Return settings of a network that trains in a moment."""
    return Settings(
        data=config.DataSettings(batch_size=batch_size),
        model=config.ModelSettings(hidden_sizes=hidden_sizes),
        optimizer=optimizer or config.OptimizerSettings(),
        plateau=config.PlateauSettings(**plateau),
        run=config.RunSettings(seed=seed),
    )


def make_spec(
    settings: Settings,
    *,
    num_classes: int = NUM_CLASSES,
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
    num_examples: int = 80,
) -> Spec:
    network = load_network(settings.model, num_classes, image_shape)
    return Spec.from_settings(settings, network, num_examples=num_examples)


def make_garments_spec(settings: Settings, num_examples: int = 600) -> Spec:
    """Return what is static in a training on the built-in images, or on Fashion-MNIST."""
    shape = (28, 28, 1)
    return make_spec(settings, num_classes=10, image_shape=shape, num_examples=num_examples)


def make_training(**settings: Any) -> tuple[Spec, Hyperparams]:
    """Return a spec, and the hyperparameters of one training without a replica axis."""
    made = make_settings(**settings)
    hyperparams = Hyperparams.from_settings([made])
    return make_spec(made), first_row(hyperparams)


def any_key() -> Any:
    """Return the key of a step of a network that draws no random numbers."""
    return jax.random.key(0)


def first_row(hyperparams: Hyperparams) -> Hyperparams:
    """Return the hyperparameters of the first replica alone."""
    return jax.tree.map(lambda rows: jnp.asarray(rows)[0], hyperparams)


def one_device(num_replicas: int) -> Mesh:
    return make_mesh(jax.devices()[:1], num_replicas)


def make_replicas(*runs: Settings) -> Replicas:
    """Return the replicas of some runs on one device."""
    hyperparams = Hyperparams.from_settings(runs)
    return Replicas(make_spec(runs[0]), hyperparams, one_device(len(hyperparams.seed)))


def take_epoch(
    replicas: Replicas, state: TrainState, split: Examples, epoch: int
) -> tuple[TrainState, StepRecord]:
    """Train an epoch; return the state and the records of its steps. ``state`` is donated."""
    order = replicas.epoch_order(epoch, len(split.labels))
    records = replicas.empty_records(order.shape[1])
    return replicas.train_steps(state, records, order, split, 0, order.shape[1], epoch)


def epochs_printed(stdout: str) -> list[int]:
    """Return the epochs whose rows were printed."""
    return [int(number) for number in re.findall(r"^epoch (\d+)/", stdout, re.MULTILINE)]


def write_lines(path: Path, records: Sequence[Any]) -> None:
    """Write records as a file of a run, one JSON object a line."""
    path.write_bytes(storage.as_lines(records))


RECORD = EpochRecord(
    epoch=1,
    step=468,
    train_loss=0.1 + 0.2,
    train_accuracy=0.5,
    test_loss=1.5,
    test_accuracy=0.25,
    scale=0.5,
    learning_rate=0.005,
    wait=1,
    cooldown=0,
    best_value=1.0,
    to_beat=0.9999,
    observations=(ObservedValue(step=200, value=1.0), ObservedValue(step=400, value=1.5)),
)


def record_of(epoch: int, /, **changes: Any) -> EpochRecord:
    """Return the record of an epoch of 468 steps, with two observations; none in epoch 0."""
    steps = (468 * epoch - 268, 468 * epoch - 68) if epoch else ()
    observations = tuple(ObservedValue(step=step, value=1.0) for step in steps)
    update = {"epoch": epoch, "step": 468 * epoch, "observations": observations}
    return RECORD.model_copy(update=update | changes)


DROP = Drop(
    epoch=11,
    step=4800,
    position=10.26,
    scale_before=1.0,
    scale_after=0.5,
    learning_rate_before=0.01,
    learning_rate_after=0.005,
    observed="train loss, mean of 200 steps",
    value=0.314,
    best=0.3122,
    to_beat=0.3121,
    waited=5,
)


def make_history(
    num_epochs: int, *, val: bool = False, drop_every: int = 0, replica: int = 0
) -> History:
    """Return a replica whose losses fall and rise again, with drops inside some epochs."""
    records, drops, scale = [], [], 1.0
    for epoch in range(num_epochs + 1):
        loss = 0.3 + 2 * math.exp(-epoch) + 0.002 * epoch + 0.01 * replica**2
        if drop_every and epoch and epoch % drop_every == 0:
            changes = {"epoch": epoch, "step": epoch * 10 - 4, "position": epoch - 0.4}
            changes |= {"scale_before": scale, "scale_after": scale / 2}
            drops.append(DROP.model_copy(update=changes))
            scale /= 2
        changes = {"epoch": epoch, "step": epoch * 10, "scale": scale, "observations": ()}
        changes |= {"learning_rate": 0.01 * scale, "wait": 0, "best_value": None, "to_beat": None}
        splits = {"train": 0.0, "test": 0.1} | ({"val": 0.05} if val else {})
        for split, gap in splits.items():
            changes |= {f"{split}_loss": loss + gap, f"{split}_accuracy": 1 - gap - loss / 3}
        records.append(RECORD.model_copy(update=changes))
    return History(replica, 10 + replica, records, drops)


def make_histories(num_epochs: int, *drop_every: int) -> list[History]:
    """Return replicas, each with the number of epochs between its drops."""
    return [
        make_history(num_epochs, drop_every=every, replica=replica)
        for replica, every in enumerate(drop_every)
    ]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_two(processes, folder, *arguments, others=(), **trouble):
    """Run a cluster of two in forked processes; process 1 has other arguments as well.

    Process 1 must change nothing on the disk. For ``trouble`` see ``faults.Processes``.
    """
    flags = (*arguments, f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2")
    commands = [
        (folder / "0", *flags, "--process-id=0"), (folder / "1", *flags, *others, "--process-id=1"),
    ]  # fmt: skip
    for place, *_ in commands:
        place.mkdir(exist_ok=True)
    leader, other = processes.run_at_once(commands, **trouble)
    assert (other.operations, list((folder / "1").iterdir())) == ([], [])
    return leader, other
