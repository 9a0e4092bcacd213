"""The only loop over epochs: where numerics, data and run meet."""

import contextlib
import datetime
import itertools
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from plateau_train import config
from plateau_train.config import Config, Resolved
from plateau_train.data.splits import Dataset, Split
from plateau_train.errors import (
    ConfigError,
    InterruptedRunError,
    NonFiniteLossError,
    PlateauTrainError,
    RunError,
    StorageError,
)
from plateau_train.numerics.mesh import make_mesh, put_everywhere
from plateau_train.numerics.plateau import Observation
from plateau_train.numerics.program import (
    Examples,
    Metrics,
    Program,
    StepRecord,
    TrainState,
    advance,
    empty_records,
    epoch_order,
    evaluate,
    init_state,
    train_steps,
)
from plateau_train.run import cluster, interruption, storage
from plateau_train.run.checkpoint import Checkpoint, Manifest
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import (
    DatasetFacts,
    describe_environment,
    identify_code,
)
from plateau_train.run.journal import Journal
from plateau_train.run.metrics import Drop, EpochRecord, Notice, Timing
from plateau_train.run.report import Report

# An epoch is cut into chunks of about this long: that often the bar moves, a loss that is not
# finite is seen and a signal is heard. The cuts leave the bits unchanged.
CHUNK_SECONDS = 0.25

# What is kept of compiled programs at the most: those of many trainings.
COMPILED_BYTES = 100_000_000


@dataclass(frozen=True)
class Epoch:
    """What one epoch leaves behind."""

    record: EpochRecord
    drops: list[Drop]
    timing: Timing
    state: TrainState


def fit(
    run: RunDirectory,
    dataset: Dataset,
    facts: DatasetFacts,
    resolved: Resolved,
    report: Report,
    found: Checkpoint | None = None,
) -> None:
    """Train one network into a run's folder, from the beginning or from what was found there."""
    started = time.perf_counter()
    settings, origins = resolved
    mesh = find_mesh(settings)
    environment = describe_environment(_device_names(mesh), facts)
    manifest = Manifest(settings=settings, origins=origins, environment=environment)
    if found is not None:
        past = found.manifest
        manifest = manifest.model_copy(
            update={"records": past.records, "timings": past.timings, "events": past.events}
        )
    with cluster.together():
        journal = Journal(run, manifest)
        try:
            run.make_latest()
        except StorageError as error:  # a convenience that nothing depends on
            report.warn(*error.problems)
        header = _header(dataset, settings, mesh, run)
        if found is not None:
            header |= {"resumed": f"after epoch {journal.manifest.epoch} of {settings.run.epochs}"}
        report.header(header)
        _warn_of_a_run_without_drops(dataset, settings, report)
        _note_the_circumstances(journal, found, report)
    try:
        with interruption.asked_first(cluster.grace_seconds()):
            for epoch in train(dataset, settings, report, found):
                with cluster.together():
                    journal.commit(epoch.record, epoch.timing, epoch.drops, _arrays(epoch.state))
                report.epoch(
                    epoch.record,
                    epoch.drops,
                    num_epochs=settings.run.epochs,
                    patience=settings.plateau.patience,
                    seconds=epoch.timing.train_seconds + epoch.timing.evaluate_seconds,
                )
        from plateau_train.run import plots  # matplotlib can wait until here

        records, drops = journal.manifest.records, journal.manifest.drops
        plots.save_plot(run.plot, records, drops, settings)
        journal.write_whole()
        summary = _summary(dataset, settings, journal.manifest)
        storage.write_text(run.summary, json.dumps(summary, indent=2) + "\n")
    except PlateauTrainError as error:
        kind = "interrupted" if isinstance(error, InterruptedRunError) else "failed"
        with contextlib.suppress(StorageError):
            journal.note(Notice(event=kind, message="; ".join(error.problems)))
        raise
    finally:
        report.close()
    took = str(datetime.timedelta(seconds=round(time.perf_counter() - started)))
    if found is not None:
        took += f" since epoch {found.manifest.epoch}"
    report.end(_ending(run, dataset, journal.manifest, took), run.path)


def follow(dataset: Dataset, settings: Config) -> None:
    """Train the same network beside process 0 of a cluster, which alone keeps what comes of it."""
    with cluster.together():
        pass  # process 0 opens its journal
    with interruption.asked_first(cluster.grace_seconds()):
        for _ in train(dataset, settings, Report(quiet=True)):
            with cluster.together():
                pass  # process 0 commits the epoch


def keep_compiled(cache_dir: Path) -> None:
    """Have JAX keep what it compiles, and take what it has kept, in the cache of the user.

    The folder is that of this processor and number of threads, which JAX does not tell apart.
    A damaged entry is compiled anew. In a cluster nothing is kept: JAX has process 0 alone write,
    and processes that compile may wait for those that need not.
    """
    if cluster.is_several() or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_dir.expanduser() / "compiled" / identify_code()
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    for key, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_max_size": COMPILED_BYTES,
    }.items():
        jax.config.update(key, value)


def find_mesh(settings: Config) -> Mesh:
    """Find the devices to train on: all of them, or the first of each process.

    Raises ``ConfigError`` where there are fewer than asked for, or they cannot share a batch.
    """
    wanted = settings.run.devices
    if wanted is not None and wanted > jax.local_device_count():
        raise ConfigError(
            f"--devices {wanted}, and there are {jax.local_device_count()} here: "
            f"{', '.join(map(str, jax.local_devices()))}",
            hint="leave --devices out to take them all",
        )
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:wanted]
    ]
    batch_size, rest = settings.data.batch_size, settings.data.batch_size % len(devices)
    if rest:
        good = [size for size in (batch_size - rest, batch_size - rest + len(devices)) if size]
        raise ConfigError(
            f"--batch-size {batch_size} does not divide by the {len(devices)} devices",
            hint=f"use --batch-size {' or '.join(map(str, good))}, or fewer --devices",
        )
    return make_mesh(devices)


def _note_the_circumstances(journal: Journal, found: Checkpoint | None, report: Report) -> None:
    """Write down what a reader of the run must know of how it came about."""
    environment = journal.manifest.environment
    dataset = environment.dataset
    if dataset.fallback and not journal.manifest.events:
        message = f"{dataset.name}: {dataset.fallback}"
        journal.note(Notice(event="warning", message=message))
    if found is None:
        return
    message = f"after epoch {journal.manifest.epoch}"
    if changes := list(found.manifest.environment.differences(environment)):
        why = f"no longer bit-exact: {', '.join(changes)}"
        message += f"; {why}"
        report.warn(f"From here on this run is {why}.")
    journal.note(Notice(event="resumed", message=message))


def train(
    dataset: Dataset,
    settings: Config,
    report: Report,
    found: Checkpoint | None = None,
) -> Iterator[Epoch]:
    """Yield epoch 0, the untrained network, and then each epoch as it is trained.

    After a checkpoint that was found it yields the epochs that are left. Each epoch's keys are
    derived from its number, so it is the same epoch as in a run that was never stopped.
    """
    mesh = find_mesh(settings)
    program = Program.from_config(settings, num_classes=len(dataset.class_names), mesh=mesh)
    if found is None:
        alone = program._replace(mesh=None)  # each process for itself: not all of them do this
        first, state = 0, init_state(alone, _seed(settings), dataset.image_shape)
    else:
        first, state = found.manifest.epoch + 1, restore(found)
    if cluster.is_several():  # only process 0 has read the checkpoint
        first, state = cluster.from_leader((first, jax.device_get(state)))
        first = int(first)
    state = put_everywhere(mesh, state)
    train_split = on_device(dataset.train, mesh)
    others = {"test": on_device(dataset.test, mesh)}
    if dataset.val is not None:
        others["val"] = on_device(dataset.val, mesh)
    num_steps = _steps_per_epoch(dataset, settings)
    report.start_epoch(first, settings.run.epochs, num_steps)
    # The untrained network is scored while the rest is traced and compiled.
    untrained = evaluate(program, state.params, train_split) if first == 0 else None
    steps = _ChunkedEpoch(program, train_split, settings, report)
    state = steps.compile(state)

    for epoch in range(first, settings.run.epochs + 1):
        started = time.perf_counter()
        report.start_epoch(epoch, settings.run.epochs, num_steps)
        observation, scale = None, 1.0
        if epoch == 0:
            train_metrics = untrained
        else:
            scale = float(jax.device_get(state.plateau.scale))
            state, columns = steps.take(state, epoch)
            # The mean over the batches as they were seen, each of the same size.
            train_metrics = Metrics(*(column.mean(dtype=np.float64) for column in columns.metrics))
            observation = columns.observation
        trained = time.perf_counter()
        metrics = {name: evaluate(program, state.params, split) for name, split in others.items()}
        metrics = jax.device_get({"train": train_metrics} | metrics)
        _refuse_non_finite(metrics, epoch, steps.last_loss, settings)
        if epoch > 0 and not program.watches_steps:
            state, observation = advance(program, state, metrics[settings.plateau.split])
        seconds = time.perf_counter() - trained
        observations, drops = _explain(
            jax.device_get(observation), scale, epoch, num_steps, settings
        )
        yield Epoch(
            record=_record(program, state, epoch, num_steps, metrics, observations, settings),
            drops=drops,
            timing=Timing(
                epoch=epoch,
                train_seconds=trained - started,
                evaluate_seconds=seconds,
                samples_per_second=(
                    num_steps * program.batch_size / (trained - started) if epoch else None
                ),
            ),
            state=state,
        )


class _ChunkedEpoch:
    """Take the steps of an epoch in chunks of steady length, watching the loss between them."""

    def __init__(self, program: Program, split: Examples, settings: Config, report: Report) -> None:
        self._program = program
        self._split = split
        self._settings = settings
        self._report = report
        self._records: StepRecord | None = None  # filled anew in each epoch, in the same memory
        self._chunk = 1
        self.last_loss: float | None = None

    def compile(self, state: TrainState) -> TrainState:
        """Compile all that an epoch takes by taking no step of it; use up the state, return it."""
        order = self._order(1)
        records = empty_records(self._program, state, self._split, len(order))
        state, self._records = train_steps(self._program, state, records, self._split, order, 0, 0)
        return state

    def _order(self, epoch: int) -> jax.Array:
        return epoch_order(
            _seed(self._settings),
            epoch,
            num_examples=len(self._split.labels),
            batch_size=self._program.batch_size,
            mesh=self._program.mesh,
        )

    def take(self, state: TrainState, epoch: int) -> tuple[TrainState, StepRecord]:
        """Return the state after the epoch, and its records as NumPy columns."""
        program, split, records = self._program, self._split, self._records
        order = self._order(epoch)
        start, num_steps = 0, len(order)
        while start < num_steps:
            began = time.perf_counter()
            stop = min(start + self._chunk, num_steps)
            state, records = train_steps(program, state, records, split, order, start, stop)
            losses = np.array(records.metrics.loss)[start:stop]
            for step, loss in enumerate(losses.tolist(), start=(epoch - 1) * num_steps + start + 1):
                if not math.isfinite(loss):
                    what = f"the training loss is {loss} at epoch {epoch}, step {step:,}"
                    raise _not_finite(what, self.last_loss, self._settings)
                self.last_loss = loss
            self._report.step(stop, losses[-1])
            rate = (stop - start) / (time.perf_counter() - began)
            # Not more than eight times as long as the last: a short one says little of the rate.
            chunk = max(1, min(int(rate * CHUNK_SECONDS), 8 * self._chunk, num_steps))
            signal_number, self._chunk = cluster.agree(interruption.received(), chunk)
            if signal_number:
                interruption.stop(signal_number)
            start = stop
        self._records = records
        return state, jax.tree.map(np.array, records)


def _seed(settings: Config) -> np.uint32:
    return np.uint32(settings.run.seed)  # as a plain int it may not fit into 32 bits with a sign


def _arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Name every array of the state by its place in it, such as params/Dense_0/kernel."""
    return _named(jax.device_get(state))


def _named(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def restore(found: Checkpoint) -> TrainState:
    """Put the arrays of a checkpoint back into the state that its settings describe.

    Raises ``RunError`` unless they are the very arrays of that state: names, shapes and types.
    """
    settings, dataset = found.manifest.settings, found.manifest.environment.dataset
    program = Program.from_config(settings, num_classes=len(dataset.class_names))
    state = jax.eval_shape(
        partial(init_state, program, image_shape=dataset.image_shape), _seed(settings)
    )
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _named(state).items()}
    present = {name: (array.shape, array.dtype) for name, array in found.arrays.items()}
    if present != expected:
        (name, *_) = sorted(
            name for name in expected | present if expected.get(name) != present.get(name)
        )
        raise RunError(
            f"the checkpoint of epoch {found.manifest.epoch} has another state than this version "
            f"trains: {name} is {present.get(name)}, expected {expected.get(name)}",
            hint="install the versions that environment.json names",
        )
    arrays = [found.arrays[name] for name in expected]
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(state), arrays))


def _steps_per_epoch(dataset: Dataset, settings: Config) -> int:
    """Count the whole batches of the training images."""
    return len(dataset.train.labels) // settings.data.batch_size


def on_device(split: Split, mesh: Mesh | None = None) -> Examples:
    """Bring the images and labels of a split to where they are computed with."""
    return Examples(*jax.tree.leaves(put_everywhere(mesh, tuple(split))))


def _refuse_non_finite(
    metrics: Mapping[str, Metrics], epoch: int, last_loss: float | None, settings: Config
) -> None:
    """Stop on an evaluation that is NaN or infinite, before the rule takes it for a plateau."""
    for split, values in metrics.items():
        if not np.isfinite(values.loss):
            raise _not_finite(
                f"the {split} loss is {values.loss} at the end of epoch {epoch}",
                last_loss,
                settings,
            )


def _not_finite(what: str, last_loss: float | None, settings: Config) -> NonFiniteLossError:
    last = "" if last_loss is None else f"; the last finite training loss was {last_loss:.4g}"
    return NonFiniteLossError(
        what + last,
        hint=f"train with a smaller --learning-rate than {settings.optimizer.learning_rate:g}",
    )


def _explain(
    observation: Observation | None, scale: float, epoch: int, num_steps: int, settings: Config
) -> tuple[list[float], list[Drop]]:
    """Return the observations of an epoch and the drops among them.

    ``observation`` holds NumPy columns of the epoch's steps, or scalars of its evaluation, and
    ``scale`` is the one before the epoch.
    """
    observations: list[float] = []
    drops: list[Drop] = []
    if observation is None:
        return observations, drops
    rows = zip(*map(np.atleast_1d, observation), strict=True)
    plateau, base = settings.plateau, settings.optimizer.learning_rate
    for number, (complete, value, best, to_beat, waited, new_scale) in enumerate(rows, start=1):
        if not complete:
            continue
        observations.append(float(value))
        if new_scale < scale:
            steps = number if plateau.split == "train" else num_steps
            drops.append(
                Drop(
                    epoch=epoch,
                    step=(epoch - 1) * num_steps + steps,
                    position=epoch - 1 + steps / num_steps,
                    scale_before=scale,
                    scale_after=float(new_scale),
                    learning_rate_before=base * scale,
                    learning_rate_after=base * float(new_scale),
                    observed=_observed(plateau),
                    value=float(value),
                    best=float(best),
                    to_beat=float(to_beat),
                    waited=int(waited),
                )
            )
            scale = float(new_scale)
    return observations, drops


def _observed(plateau: config.Plateau) -> str:
    """Say what one observation is."""
    what = f"{'1 - ' if plateau.metric == 'accuracy' else ''}{plateau.split} {plateau.metric}"
    if plateau.accumulation_size == 1:
        return what
    unit = "steps" if plateau.split == "train" else "epochs"
    return f"{what}, mean of {plateau.accumulation_size} {unit}"


def _record(
    program: Program,
    state: TrainState,
    epoch: int,
    num_steps: int,
    metrics: Mapping[str, Metrics],
    observations: list[float],
    settings: Config,
) -> EpochRecord:
    """Put an epoch's metrics and the state of the rule after it into one line."""
    plateau, to_beat = jax.device_get(
        (state.plateau, program.rule.to_beat(jnp.asarray(state.plateau.best_value)))
    )
    seen = bool(np.isfinite(plateau.best_value))
    scores = {
        f"{split}_{name}": float(value)
        for split, values in metrics.items()
        for name, value in values._asdict().items()
    }
    return EpochRecord(
        epoch=epoch,
        step=epoch * num_steps,
        **scores,
        scale=float(plateau.scale),
        learning_rate=settings.optimizer.learning_rate * float(plateau.scale),
        wait=int(plateau.plateau_count),
        cooldown=int(plateau.cooldown_count),
        best_value=float(plateau.best_value) if seen else None,
        to_beat=float(to_beat) if seen else None,
        observations=tuple(observations),
    )


def _device_names(mesh: Mesh) -> list[str]:
    return [f"{device.platform}:{device.id} ({device.device_kind})" for device in mesh.devices]


def _devices(mesh: Mesh) -> str:
    """Say which devices train, equal ones in a number."""
    if mesh.size == 1:
        return _device_names(mesh)[0]
    kinds = Counter(f"{device.platform} ({device.device_kind})" for device in mesh.devices)
    shown = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    return shown + (f" in {jax.process_count()} processes" if cluster.is_several() else "")


def _header(dataset: Dataset, settings: Config, mesh: Mesh, run: RunDirectory) -> dict[str, str]:
    """Say what is about to be trained, and what patience means in epochs."""
    plateau, optimizer = settings.plateau, settings.optimizer
    num_steps = _steps_per_epoch(dataset, settings)
    sizes = [math.prod(dataset.image_shape), *settings.model.hidden_sizes, len(dataset.class_names)]
    num_params = sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
    counts = [f"{len(dataset.train.labels):,} training"]
    if dataset.val is not None:
        counts.append(f"{len(dataset.val.labels):,} validation")
    counts.append(f"{len(dataset.test.labels):,} test images")
    shape = "x".join(map(str, dataset.image_shape))
    epochs = plateau.observation_epochs(num_steps)
    return {
        "data": f"{dataset.name}: {', '.join(counts)} of {shape}, "
        f"{len(dataset.class_names)} classes; {dataset.source}"
        + ("; NOT Fashion-MNIST" if dataset.fallback else ""),
        "model": f"MLP {'-'.join(map(str, sizes))}, {num_params:,} parameters",
        "training": f"{optimizer.optimizer} at {optimizer.learning_rate:g}, "
        f"{_in_epochs(settings.run.epochs)} of {num_steps} steps "
        f"of {settings.data.batch_size} images, seed {settings.run.seed}",
        "plateau": f"an observation is the {_observed(plateau)} ({_in_epochs(epochs)}); "
        f"patience {plateau.patience} ({_in_epochs(plateau.patience * epochs)}), "
        f"cooldown {plateau.cooldown} ({_in_epochs(plateau.cooldown * epochs)}), "
        f"factor {plateau.factor:g}, rtol {plateau.rtol:g}, atol {plateau.atol:g}",
        "device": f"{_devices(mesh)}, {settings.model.precision}, jax {jax.__version__}",
        "run": str(run.path),
    }


def _in_epochs(epochs: float) -> str:
    shown = f"{epochs:.2g}" if epochs < 10 else f"{epochs:,.0f}"
    return f"{shown} epoch{'' if shown == '1' else 's'}"


def _warn_of_a_run_without_drops(dataset: Dataset, settings: Config, report: Report) -> None:
    """Say so if the run is over before patience can run out."""
    plateau = settings.plateau
    num_steps = _steps_per_epoch(dataset, settings)
    unit, values = "epochs", settings.run.epochs
    if plateau.split == "train":
        unit, values = "steps", settings.run.epochs * num_steps
    # The first observation improves on nothing, and then patience begins.
    needed = (1 + plateau.patience) * plateau.accumulation_size
    if values < needed:
        report.warn(
            f"The rate cannot drop in this run: that takes {needed:,} {unit}, "
            f"(1 + patience) x accumulation size, and it has {values:,}."
        )


def _summary(dataset: Dataset, settings: Config, manifest: Manifest) -> dict[str, Any]:
    """Collect what a run came to."""
    final, best, drops = manifest.records[-1], manifest.best, manifest.drops
    return {
        "dataset": dataset.name,
        "fallback": dataset.fallback or None,
        "mode": settings.plateau.mode,
        "epochs": final.epoch,
        "final": final.model_dump(exclude={"observations"}),
        "best_by": best.scored_by,
        "best": best.model_dump(exclude={"observations"}),
        "num_drops": len(drops),
        "drop_epochs": [drop.epoch for drop in drops],
    }


def _ending(run: RunDirectory, dataset: Dataset, manifest: Manifest, took: str) -> dict[str, str]:
    """Say how a run ended, and what to type next."""
    final, best, drops = manifest.records[-1], manifest.best, manifest.drops
    fell = ", ".join(str(drop.epoch) for drop in drops) or "none"
    return {
        "done": f"{_in_epochs(final.epoch)} in {took}"
        + (f", on {dataset.name}, NOT on Fashion-MNIST" if dataset.fallback else ""),
        **{
            split: f"loss {loss:.4f}, accuracy {accuracy:.4f}"
            for split, loss, accuracy in final.scores()
        },
        "best": f"epoch {best.epoch}, of the highest {best.scored_by}: "
        + ", ".join(f"{split} {accuracy:.4f}" for split, _, accuracy in best.scores()),
        "drops": f"{len(drops)} (epochs: {fell}), final scale {final.scale:.6g}",
        "plot": str(run.plot),
        "next": f"plateau-train evaluate {run}",
    }
