"""The only loop over epochs: where numerics, data and run meet."""

import contextlib
import datetime
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from plateau_train.config import Resolved, Settings
from plateau_train.data.splits import Dataset, Split
from plateau_train.errors import (
    ConfigError,
    InterruptedRunError,
    PlateauTrainError,
    RunError,
    StorageError,
)
from plateau_train.numerics.mesh import BATCH_AXIS, REPLICA_AXIS, make_mesh, put_everywhere
from plateau_train.numerics.plateau import PlateauRule
from plateau_train.numerics.program import Examples, Params, Program, TrainState, init_state
from plateau_train.numerics.replicas import Ensemble, Solo
from plateau_train.process import cluster, signals
from plateau_train.report import text as wording
from plateau_train.report.console import Report
from plateau_train.run import storage
from plateau_train.run.checkpoint import Checkpoint, Manifest
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import (
    DatasetFacts,
    Environment,
    describe_environment,
    identify_code,
)
from plateau_train.run.journal import Journal
from plateau_train.run.records import Drop, EpochRecord, Notice, Timing
from plateau_train.training.groups import (
    Group,
    LostTrainingsError,
    Member,
    MemoryPlan,
    Survivors,
    Trained,
    cut,
    describe_plan,
    join,
    make_ensembles,
    plan_memory,
    stack,
)

# What is kept of compiled programs at the most: those of many trainings.
COMPILED_BYTES = 100_000_000


class Place(NamedTuple):
    """A run to train: its folder, its settings, and the checkpoint that it goes on from."""

    run: RunDirectory
    resolved: Resolved
    found: Checkpoint | None = None


class Outcome(NamedTuple):
    """What one epoch leaves behind in one run: a record of each replica that is finite still."""

    records: list[EpochRecord]
    drops: list[Drop]
    diverged: list[Notice]
    timing: Timing
    state: TrainState  # on the host, with a leading axis of replicas


def fit(
    places: Sequence[Place],
    dataset: Dataset,
    facts: DatasetFacts,
    report: Report,
    *,
    in_sweep: bool = False,
) -> None:
    """Train a run, or several of a sweep that share a program, into their folders.

    All of them begin, or go on after the same epoch. Raises ``NonFiniteLossError`` when no training
    is left that is finite.
    """
    started = time.perf_counter()
    settings = [place.resolved.settings for place in places]
    found = [place.found for place in places if place.found is not None]
    mesh = find_mesh(settings[0])
    environment = describe_environment(_device_names(mesh), facts)
    with cluster.fail_together():
        journals = [_open_journal(place, environment) for place in places]
        if not in_sweep:
            _introduce(journals[0], dataset, mesh, report, is_resumed=bool(found))
        for journal, place in zip(journals, places, strict=True):
            _note_the_circumstances(journal, place.found, report)
    try:
        with signals.graceful_shutdown(cluster.grace_seconds()):
            for outcomes in train(dataset, settings, report, found):
                with cluster.fail_together():
                    for journal, outcome in zip(journals, outcomes, strict=True):
                        _keep(journal, outcome)
                _tell(outcomes, journals, report, in_sweep=in_sweep)
        for journal in journals:
            _conclude(journal, dataset)
    except PlateauTrainError as error:
        kind = "interrupted" if isinstance(error, InterruptedRunError) else "failed"
        # Of a single training the failure of the run says it all.
        has_replicas = settings[0].run.seeds is not None
        lost = error.lost if isinstance(error, LostTrainingsError) and has_replicas else ()
        for number, journal in enumerate(journals):
            with contextlib.suppress(StorageError):
                for member, notice in lost:
                    if member.run == number:
                        journal.note(notice)
                journal.note(Notice(event=kind, message="; ".join(error.problems)))
        raise
    finally:
        report.close()
    took = str(datetime.timedelta(seconds=round(time.perf_counter() - started)))
    if found:
        took += f" since epoch {found[0].manifest.epoch}"
    if not in_sweep:
        ending = wording.describe_end(journals[0].run, dataset, journals[0].manifest, took)
        report.end(ending, journals[0].run.path)


def follow(dataset: Dataset, settings: Settings) -> None:
    """Train the same network beside process 0 of a cluster, which alone keeps what comes of it."""
    with cluster.fail_together():
        pass  # process 0 opens its journal
    with signals.graceful_shutdown(cluster.grace_seconds()):
        for _ in train(dataset, [settings], Report(quiet=True)):
            with cluster.fail_together():
                pass  # process 0 commits the epoch


def _open_journal(place: Place, environment: Environment) -> Journal:
    """Begin to write a run's files, or go on with them."""
    settings, origins = place.resolved
    manifest = Manifest(settings=settings, origins=origins, environment=environment)
    if place.found is not None:
        past = place.found.manifest
        manifest = manifest.model_copy(
            update={"records": past.records, "timings": past.timings, "events": past.events}
        )
    return Journal(place.run, manifest)


def _introduce(
    journal: Journal, dataset: Dataset, mesh: Mesh, report: Report, *, is_resumed: bool
) -> None:
    """Tell what is about to be trained."""
    run, settings = journal.run, journal.manifest.settings
    try:
        run.make_latest()
    except StorageError as error:  # a convenience that nothing depends on
        report.warn(*error.problems)
    devices = f"{_devices(mesh)}, {settings.model.precision}, jax {jax.__version__}"
    header = wording.describe_header(dataset, settings, devices) | {"run": str(run.path)}
    if settings.run.seeds is not None:
        plan = plan_replicas(dataset, [settings])
        header |= {"replicas": describe_plan(plan, len(settings.run.seeds))}
    if is_resumed:
        header |= {"resumed": f"after epoch {journal.manifest.epoch} of {settings.run.epochs}"}
    report.header(header)
    if warning := wording.warn_of_a_run_without_drops(dataset, settings):
        report.warn(warning)


def _keep(journal: Journal, outcome: Outcome) -> None:
    """Write down an epoch of a run, some or all of whose trainings may have diverged in it."""
    if outcome.records:
        state = outcome.state
        if journal.manifest.settings.run.seeds is None:
            state = jax.tree.map(lambda rows: rows[0], state)
        events = (*outcome.drops, *outcome.diverged)
        journal.commit(outcome.records, outcome.timing, events, _named(state))
    elif outcome.diverged:
        for notice in outcome.diverged:
            journal.note(notice)
        journal.note(Notice(event="failed", message="no training of this run is finite"))


def _tell(
    outcomes: Sequence[Outcome], journals: Sequence[Journal], report: Report, *, in_sweep: bool
) -> None:
    """Print an epoch; in a sweep the mean over all, for each run has its drops in its events."""
    for outcome, journal in zip(outcomes, journals, strict=True):
        for notice in outcome.diverged:
            run = f"{journal.run.path.name}, " if in_sweep else ""
            report.warn(f"{run}{notice.message}")
    settings = journals[0].manifest.settings
    report.epoch(
        [record for outcome in outcomes for record in outcome.records],
        () if in_sweep else outcomes[0].drops,
        num_epochs=settings.run.epochs,
        patience=settings.plateau.patience if settings.optimizer.schedule == "plateau" else None,
        num_replicas=len(journals) * len(settings.run.replica_seeds),
        seconds=sum(
            outcome.timing.train_seconds + outcome.timing.evaluate_seconds for outcome in outcomes
        ),
    )


def _conclude(journal: Journal, dataset: Dataset) -> None:
    """Leave the plot and the summary of a run that has come to its end."""
    from plateau_train.plots import panels  # matplotlib can wait until here

    run, manifest = journal.run, journal.manifest
    if manifest.epoch < manifest.settings.run.epochs:
        return  # all of its trainings have diverged
    panels.save_plot(run.plot, manifest.histories, manifest.settings)
    journal.write_whole()
    summary = wording.summarize(dataset, manifest)
    storage.write_text(run.summary, json.dumps(summary, indent=2) + "\n")


def enable_compilation_cache(cache_dir: Path) -> None:
    """Have JAX keep what it compiles, and take what it has kept, in the cache of the user.

    The folder is that of this processor and number of threads, which JAX does not tell apart.
    A damaged entry is compiled anew. In a cluster nothing is kept: JAX has process 0 alone write,
    and processes that compile may wait for those that need not.
    """
    if cluster.is_multiprocess() or jax.config.values["jax_compilation_cache_dir"] is not None:
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


def find_mesh(settings: Settings) -> Mesh:
    """Find the devices to train on: all of them, or the first of each process.

    They share the batch of a single training; of several each device takes some. Raises
    ``ConfigError`` where there are fewer than asked for, or they cannot share a batch.
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
    if settings.run.seeds is not None:
        if cluster.is_multiprocess():
            raise ConfigError(
                f"--seeds trains in one process, and this is {cluster.describe()}",
                hint="start a run for some of the seeds in each process: --num-processes 1",
            )
        return make_mesh(devices, REPLICA_AXIS)
    batch_size, rest = settings.data.batch_size, settings.data.batch_size % len(devices)
    if rest:
        good = [size for size in (batch_size - rest, batch_size - rest + len(devices)) if size]
        raise ConfigError(
            f"--batch-size {batch_size} does not divide by the {len(devices)} devices",
            hint=f"use --batch-size {' or '.join(map(str, good))}, or fewer --devices",
        )
    return make_mesh(devices, BATCH_AXIS)


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
    settings: Sequence[Settings],
    report: Report,
    found: Sequence[Checkpoint] = (),
) -> Iterator[list[Outcome]]:
    """Yield of each run epoch 0, the untrained networks, and then each epoch as it is trained.

    After checkpoints that were found, one for each run, it yields the epochs that are left. Each
    epoch's keys are derived from its number, so it is the same epoch as in a run that was never
    stopped.
    """
    plan = settings[0]  # of what they differ in, members and programs know
    members = [
        Member(run, replica, seed, choice.optimizer.learning_rate)
        for run, choice in enumerate(settings)
        for replica, seed in enumerate(choice.run.replica_seeds)
    ]
    first, groups = _form_groups(dataset, settings, members, found)
    survivors = Survivors(members, _are_alive(members, found))
    num_steps = wording.count_steps(dataset, plan)
    report.start_epoch(first, plan.run.epochs, num_steps)
    for group in groups:
        group.prepare(untrained=first == 0)
    for epoch in range(first, plan.run.epochs + 1):
        trained = []
        for number, group in enumerate(groups, start=1):
            part = f", group {number}/{len(groups)}" if len(groups) > 1 else ""
            report.start_epoch(epoch, plan.run.epochs, num_steps, part)
            trained.append(group.epoch(epoch, plan.plateau.split, survivors, report))
        yield _outcomes(join(trained), epoch, num_steps, settings, members, survivors)


def _form_groups(
    dataset: Dataset,
    settings: Sequence[Settings],
    members: Sequence[Member],
    found: Sequence[Checkpoint],
) -> tuple[int, list[Group]]:
    """Return the epoch to begin with, and the trainings as they fit together."""
    mesh, first, whole = find_mesh(settings[0]), 0, None
    trainers = _make_trainers(dataset, settings, members, mesh)
    splits = {"train": on_device(dataset.train, mesh)}
    if dataset.val is not None:
        splits["val"] = on_device(dataset.val, mesh)
    splits["test"] = on_device(dataset.test, mesh)
    if found:
        first, whole = found[0].manifest.epoch + 1, stack([restore(each) for each in found])
    groups, start = [], 0
    for trainer in trainers:
        which = range(start, start := start + trainer.num_trainings)
        if whole is None:
            state = trainer.fetch(trainer.init(dataset.image_shape))
        else:
            state = cut(whole, which)
        if cluster.is_multiprocess():  # only process 0 has read the checkpoint
            first, state = cluster.from_leader((first, state))
        groups.append(Group(trainer, state, splits, which, takes_turns=len(trainers) > 1))
    return int(first), groups


def _make_trainers(
    dataset: Dataset, settings: Sequence[Settings], members: Sequence[Member], mesh: Mesh
) -> Sequence[Solo | Ensemble]:
    """Make one of a single training, and of replicas as few as there is memory for."""
    make = partial(Program.from_config, num_classes=len(dataset.class_names))
    if settings[0].run.seeds is None:
        return [Solo(make(settings[0], mesh=mesh), members[0].seed)]
    programs = [make(settings[member.run]) for member in members]
    return make_ensembles(programs, members, mesh, plan_replicas(dataset, settings).at_once)


def plan_replicas(dataset: Dataset, settings: Sequence[Settings]) -> MemoryPlan:
    """Decide how many of the replicas of runs are trained at once; see ``plan_memory``."""
    program = Program.from_config(settings[0], num_classes=len(dataset.class_names))
    num_trainings = sum(len(choice.run.replica_seeds) for choice in settings)
    return plan_memory(program, num_trainings, find_mesh(settings[0]), dataset.image_shape)


def _are_alive(members: Sequence[Member], found: Sequence[Checkpoint]) -> list[bool]:
    """Tell of each training whether it had not diverged by the checkpoint of its run."""
    if not found:
        return [True] * len(members)
    there = [{record.replica for record in checkpoint.manifest.final} for checkpoint in found]
    return [member.replica in there[member.run] for member in members]


def _outcomes(
    trained: Trained,
    epoch: int,
    num_steps: int,
    settings: Sequence[Settings],
    members: Sequence[Member],
    survivors: Survivors,
) -> list[Outcome]:
    """Sort what an epoch has left by the runs that it was trained for."""
    num_images = num_steps * settings[0].data.batch_size * len(members)
    timing = Timing(
        epoch=epoch,
        train_seconds=trained.train_seconds / len(settings),
        evaluate_seconds=trained.evaluate_seconds / len(settings),
        samples_per_second=num_images / trained.train_seconds if epoch else None,
    )
    outcomes = []
    for run, choice in enumerate(settings):
        rows = [row for row, member in enumerate(members) if member.run == run]
        records: list[EpochRecord] = []
        drops: list[Drop] = []
        for row in rows:
            if survivors.alive[row]:
                one = trained.of(row)
                observations, fell = _explain(one, members[row], epoch, num_steps, choice)
                drops += fell
                records.append(_record(one, members[row], epoch, num_steps, observations, choice))
        state = cut(trained.state, range(rows[0], rows[-1] + 1))
        outcomes.append(Outcome(records, drops, survivors.take_lost(run), timing, state))
    return outcomes


def _explain(
    trained: Trained, member: Member, epoch: int, num_steps: int, settings: Settings
) -> tuple[list[float], list[Drop]]:
    """Return the observations of an epoch of one training and the drops among them."""
    observations: list[float] = []
    drops: list[Drop] = []
    if trained.observation is None:
        return observations, drops
    # Columns of the epoch's steps, or scalars of its evaluation.
    rows = zip(*map(np.atleast_1d, trained.observation), strict=True)
    plateau, base = settings.plateau, settings.optimizer.learning_rate
    scale = float(trained.scale)
    for number, (complete, value, best, to_beat, waited, new_scale) in enumerate(rows, start=1):
        if not complete:
            continue
        observations.append(float(value))
        if settings.optimizer.schedule == "plateau" and new_scale < scale:
            steps = number if plateau.split == "train" else num_steps
            drops.append(
                Drop(
                    replica=member.replica,
                    epoch=epoch,
                    step=(epoch - 1) * num_steps + steps,
                    position=epoch - 1 + steps / num_steps,
                    scale_before=scale,
                    scale_after=float(new_scale),
                    learning_rate_before=base * scale,
                    learning_rate_after=base * float(new_scale),
                    observed=wording.describe_observation(plateau),
                    value=float(value),
                    best=float(best),
                    to_beat=float(to_beat),
                    waited=int(waited),
                )
            )
            scale = float(new_scale)
    return observations, drops


def _record(
    trained: Trained,
    member: Member,
    epoch: int,
    num_steps: int,
    observations: Sequence[float],
    settings: Settings,
) -> EpochRecord:
    """Put the metrics of one training and the state of the rule after them into one line."""
    plateau = jax.device_get(trained.state.plateau)  # optax's types are too wide for numbers
    seen = bool(np.isfinite(plateau.best_value))
    to_beat = PlateauRule.from_settings(settings.plateau).to_beat(jnp.asarray(plateau.best_value))
    scores = {
        f"{split}_{name}": float(value)
        for split, values in trained.metrics.items()
        for name, value in values._asdict().items()
    }
    return EpochRecord(
        replica=member.replica,
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


def _named(tree: Any) -> dict[str, Any]:
    """Name every array of a state by its place in it, such as params/Dense_0/kernel."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def restore(found: Checkpoint) -> TrainState:
    """Put the arrays of a checkpoint back into the state that its settings describe.

    They come with a leading axis of replicas, also those of a single training. Raises ``RunError``
    unless they are the very arrays of that state: names, shapes and types.
    """
    settings, dataset = found.manifest.settings, found.manifest.environment.dataset
    program = Program.from_config(settings, num_classes=len(dataset.class_names))
    state = jax.eval_shape(
        partial(init_state, program, image_shape=dataset.image_shape), np.uint32(0)
    )
    axes = () if settings.run.seeds is None else (len(settings.run.seeds),)
    expected = {name: ((*axes, *leaf.shape), leaf.dtype) for name, leaf in _named(state).items()}
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
    if not axes:
        arrays = [array[np.newaxis] for array in arrays]
    return jax.tree.unflatten(jax.tree.structure(state), arrays)


def restore_params(found: Checkpoint) -> Params:
    """Return the parameters in the checkpoint of a single training."""
    return jax.tree.map(lambda rows: rows[0], restore(found).params)


def on_device(split: Split, mesh: Mesh | None = None) -> Examples:
    """Bring the images and labels of a split to where they are computed with."""
    return Examples(*jax.tree.leaves(put_everywhere(mesh, tuple(split))))


def _device_names(mesh: Mesh) -> list[str]:
    return [f"{device.platform}:{device.id} ({device.device_kind})" for device in mesh.devices]


def _devices(mesh: Mesh) -> str:
    """Say which devices train, equal ones in a number."""
    if mesh.size == 1:
        return _device_names(mesh)[0]
    kinds = Counter(f"{device.platform} ({device.device_kind})" for device in mesh.devices)
    shown = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    return shown + (f" in {jax.process_count()} processes" if cluster.is_multiprocess() else "")
