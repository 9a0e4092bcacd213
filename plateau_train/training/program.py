"""The replicas of one or several runs in one compiled program: devices, data, and one epoch."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from plateau_train.config import Settings, expand_home
from plateau_train.config.files import is_private
from plateau_train.data.splits import Dataset
from plateau_train.errors import ConfigError
from plateau_train.numerics.plateau import Observation
from plateau_train.numerics.replicas import BATCH_AXIS, Replicas, count_sharing, make_mesh
from plateau_train.numerics.spec import Hyperparams, Spec
from plateau_train.numerics.step import Metrics, StepRecord, TrainState, training_losses
from plateau_train.process import cluster, signals
from plateau_train.run.environment import identify_code
from plateau_train.training.chunks import Chunks
from plateau_train.training.endings import Endings, Member
from plateau_train.training.memory import check_memory
from plateau_train.training.models import load_network
from plateau_train.training.stalls import Stalls

# Limit of the cache of compiled programs.
COMPILED_BYTES = 100_000_000


class EpochArrays(NamedTuple):
    """The results of an epoch on the host; every array has a leading replica axis."""

    metrics: dict[str, Metrics]  # by split
    observation: Observation  # the last one after each step, or after the evaluation
    num_observations: Int32[np.ndarray, " replicas"]  # before the epoch
    state: TrainState
    train_seconds: float
    evaluate_seconds: float


class Trial(NamedTuple):
    """A step and an evaluation of each replica, and how long they took once they were compiled."""

    loss: list[float]
    test_loss: list[float]
    step_seconds: float
    evaluate_seconds: float


class Program:
    """The replicas of runs that share a ``Spec`` and a data set, on the devices of a mesh."""

    def __init__(self, runs: Sequence[Settings], dataset: Dataset) -> None:
        """Prepare the devices; raises ``ConfigError`` where data or devices do not suffice."""
        first, num_examples = runs[0], len(dataset.train.labels)
        self.runs, self.dataset = runs, dataset
        for settings in runs:
            if settings.plateau.split == "val" and dataset.val is None:
                raise ConfigError(
                    f"--mode {settings.plateau.mode} needs held-out images, and {dataset.name} has "
                    "no validation images of its own",
                    hint="add --val-fraction 0.1",
                )
        self.steps_per_epoch = num_examples // first.data.batch_size
        _check_early_stop(runs, self.steps_per_epoch)
        self.members = [
            Member(run, replica, seed, settings)
            for run, settings in enumerate(runs)
            for replica, seed in enumerate(settings.run.seeds)
        ]
        self.endings = Endings(self.members)
        network = load_network(first.model, len(dataset.class_names), dataset.image_shape)
        spec = Spec.from_settings(first, network, num_examples=num_examples)
        mesh = find_mesh(first, len(self.members))
        self.memory = check_memory(spec, len(self.members), mesh, dataset.image_shape)
        self.stalls = Stalls(self.members, follows_rule=spec.schedule.follows_rule)
        hyperparams = Hyperparams.from_settings(runs, steps_per_epoch=self.steps_per_epoch)
        self.replicas = Replicas(spec, hyperparams, mesh)

    def empty_state(self) -> TrainState:
        """Return zeros on the host in the shapes of the state."""
        shapes = jax.eval_shape(lambda: self.replicas.init(self.dataset.image_shape))
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def rows_of(self, run: int) -> list[int]:
        """Return the rows of a run's replicas in every array."""
        return [row for row, member in enumerate(self.members) if member.run == run]

    def load(self, state: TrainState | None) -> None:
        """Put the data and a host state, or the state before the first step, on the devices.

        Then compile the training steps with a call that takes no step, where one compilation
        serves all calls. Meanwhile the devices score an untrained network on the training images.
        """
        named = {"train": self.dataset.train, "val": self.dataset.val, "test": self.dataset.test}
        self._splits = {
            name: self.replicas.put_split(split)
            for name, split in named.items()
            if split is not None
        }
        train, self._untrained = self._splits["train"], None
        is_static = self.replicas.has_static_bounds
        self._chunks = Chunks(self.steps_per_epoch, len(self.members), is_static=is_static)
        if state is None:
            self._state = self.replicas.init(self.dataset.image_shape)
            variables = self._state.variables
            self._untrained = self.replicas.evaluate(variables, train, training_losses)
        else:
            self._state = self.replicas.put(state)
        # Filled again in each epoch, in the same memory.
        self._records: StepRecord = self.replicas.empty_records(self.steps_per_epoch)
        if not is_static:
            self._take_steps(self.replicas.epoch_order(1, len(train.labels)), 0, 0, 1)

    def try_step(self) -> "Trial":
        """Take the first step and evaluate, each twice, to time them once they are compiled.

        The losses are those of the first time: of the untrained network, and after one step.
        Raises ``ConfigError`` where the first loss is not finite.
        """
        self.load(None)
        order = self.replicas.epoch_order(1, len(self._splits["train"].labels))
        first, timed = (self._try_once(order) for _ in range(2))
        return timed._replace(loss=first.loss, test_loss=first.test_loss)

    def _try_once(self, order: jax.Array) -> "Trial":
        began = time.perf_counter()
        self._take_steps(order, 0, 1, 1)
        losses = cluster.gather(self._records.metrics.loss)[:, 0]
        trained = time.perf_counter()
        if not np.isfinite(losses).all():
            raise ConfigError(
                f"the loss of {self.replicas.spec.network.title} is {losses.max()} in the first "
                "step",
                hint="return finite logits, without a softmax; small initial values help",
            )
        scores = self.replicas.evaluate(self._state.variables, self._splits["test"])
        test_losses = cluster.gather(scores.loss).tolist()
        seconds = trained - began, time.perf_counter() - trained
        return Trial(losses.tolist(), test_losses, *seconds)

    def count_flops(self) -> float | None:
        """Return the floating point operations of a step on each device; see ``Replicas``."""
        order = self.replicas.epoch_order(1, len(self._splits["train"].labels))
        return self.replicas.count_flops(self._state, self._records, order, self._splits["train"])

    def run_epoch(self, epoch: int, on_chunk: Callable[[int, float], None]) -> EpochArrays:
        """Train an epoch (none as epoch 0), evaluate, and give the rule the evaluation.

        ``on_chunk`` gets the number of steps taken and the mean loss of the last one.
        """
        began = time.perf_counter()
        num_observations = cluster.gather(self._state.plateau.observation.number)
        train, observation = self._untrained, None
        if epoch > 0:
            records = self._train(epoch, on_chunk)
            # Every mini-batch has the same size.
            train = Metrics(*(rows.mean(axis=1, dtype=np.float64) for rows in records.metrics))
            observation = records.observation
        trained = time.perf_counter()
        scores = {
            name: self.replicas.evaluate(self._state.variables, split)
            for name, split in self._splits.items()
            if name != "train"
        }
        if epoch == 0:
            train = cluster.gather(train)
        metrics: dict[str, Metrics] = {"train": train} | cluster.gather(scores)
        losses: dict[str, Any] = {name: scores.loss for name, scores in metrics.items()}
        self.endings.check_evaluation(losses, epoch)
        if epoch > 0 and not self.replicas.spec.observes_steps:
            observed = self.replicas.put(metrics[self.replicas.spec.split])
            last_step = epoch * self.steps_per_epoch - 1
            self._state = self.replicas.observe(self._state, observed, last_step)
        state = cluster.gather(self._state)
        observation = observation or state.plateau.observation
        seconds = trained - began, time.perf_counter() - trained
        return EpochArrays(metrics, observation, num_observations, state, *seconds)

    def _train(self, epoch: int, on_chunk: Callable[[int, float], None]) -> StepRecord:
        """Take the steps of an epoch in chunks; return their records on the host."""
        num_steps, start = self.steps_per_epoch, 0
        order = self.replicas.epoch_order(epoch, len(self._splits["train"].labels))
        while start < num_steps:
            began = time.perf_counter()
            stop = min(start + self._chunks.length, num_steps)
            self._take_steps(order, start, stop, epoch)
            losses = cluster.gather(self._records.metrics.loss)[:, start:stop]
            self.endings.check_steps(losses, epoch, (epoch - 1) * num_steps + start + 1)
            if shown := losses[self.endings.is_active, -1].tolist():
                on_chunk(stop, fmean(shown))
            length = self._chunks.propose(
                stop - start, time.perf_counter() - began, is_epoch_over=stop == num_steps
            )
            signal_number, self._chunks.length = cluster.agree(signals.received(), length)
            if signal_number:
                signals.stop(signal_number)
            start = stop
        return cluster.gather(self._records)

    def _take_steps(self, order: jax.Array, start: int, stop: int, epoch: int) -> None:
        self._state, self._records = self.replicas.train_steps(
            self._state, self._records, order, self._splits["train"], start, stop, epoch
        )

    def describe_devices(self) -> str:
        """Return the devices, equal ones as a number."""
        mesh = self.replicas.mesh
        if mesh.size == 1:
            return self.device_names()[0]
        kinds = Counter(f"{device.platform} ({device.device_kind})" for device in mesh.devices.flat)
        shown = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
        processes = f" in {jax.process_count()} processes" if cluster.is_multiprocess() else ""
        return shown + processes

    def device_names(self) -> list[str]:
        devices = self.replicas.mesh.devices.flat
        return [f"{device.platform}:{device.id} ({device.device_kind})" for device in devices]


def _check_early_stop(runs: Sequence[Settings], steps_per_epoch: int) -> None:
    """Raise ``ConfigError`` where a patience in epochs is not shorter than the early stop."""
    for settings in runs:
        patience = settings.plateau.counted(steps_per_epoch).patience
        if problems := list(settings.early_stop_problems(patience)):
            given = f"here --patience {settings.plateau.patience} is {patience}"
            raise ConfigError(*problems, hint=f"give a larger one; {given}")


def find_mesh(settings: Settings, num_replicas: int) -> Mesh:
    """Arrange all devices, or the first ``--devices`` of each process.

    The devices of one CPU have the same cores: by default there are as many as share the replicas
    evenly, and none share a batch.

    Raises ``ConfigError`` where there are fewer, or where they cannot share a batch evenly.
    """
    wanted = settings.run.devices
    if wanted is not None and wanted > jax.local_device_count():
        raise ConfigError(
            f"--devices {wanted} is more than the {jax.local_device_count()} here: "
            f"{', '.join(map(str, jax.local_devices()))}",
            hint="leave --devices out to use all of them",
        )
    if wanted is None and jax.default_backend() == "cpu" and not cluster.is_multiprocess():
        wanted = count_sharing(num_replicas, jax.local_device_count())
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:wanted]
    ]
    mesh = make_mesh(devices, num_replicas)
    batch_size, num_sharing = settings.data.batch_size, mesh.shape[BATCH_AXIS]
    rest = batch_size % num_sharing
    if rest:
        good = [size for size in (batch_size - rest, batch_size - rest + num_sharing) if size]
        raise ConfigError(
            f"--batch-size {batch_size} is not divisible by the {num_sharing} devices that share "
            "each batch",
            hint=f"use --batch-size {' or '.join(map(str, good))}, or fewer --devices",
        )
    return mesh


def enable_compilation_cache(cache_dir: Path) -> None:
    """Let JAX store compiled programs in the user's cache, separately for each processor.

    JAX itself does not distinguish processors and numbers of threads. It compiles a damaged entry
    again. In a cluster nothing is stored: only process 0 would write, and processes that compile
    could wait for those that do not.
    """
    if cluster.is_multiprocess() or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    root = expand_home(cache_dir)
    folder = root / "compiled" / identify_code()
    if not all(map(is_private, (root, root / "compiled", folder))):
        return
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    for key, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_max_size": COMPILED_BYTES,
    }.items():
        jax.config.update(key, value)
