"""What comes before training: the cluster, settings, threads, data, the folder and its lock.

A device is used only when the threads are fixed.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from plateau_train import config, data
from plateau_train.config import SETTINGS, Resolved, Settings
from plateau_train.config.toml import to_toml
from plateau_train.data.splits import Dataset
from plateau_train.errors import (
    ChangedSettingsError,
    ClusterError,
    ConfigError,
    DataError,
    DataUnavailableError,
    RunError,
    StorageError,
)
from plateau_train.process import cluster, signals
from plateau_train.report.console import Report
from plateau_train.run import checkpoint, environment, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import FIND_HINT, RunDirectory
from plateau_train.run.environment import DatasetFacts
from plateau_train.run.records import read_drops

# What may differ when a run is resumed: nothing of it moves a result. Epochs may only be added.
FREE = {"data_dir", "cache_dir", "epochs", "runs_dir", "name", "quiet", "devices"} | {
    knob.key for knob in SETTINGS if knob.table == "cluster"
}

# What each process of a cluster has of its own; the rest is that of process 0.
OWN = {"data_dir", "cache_dir", "runs_dir", "name", "quiet", "threads"}

# What process 0 tells the others where there is nothing to train.
NOTHING = ""


def start(resolved: Resolved, report: Report) -> Path | None:
    """Train one network in a new folder, and return the folder where this process keeps it.

    Everything that can be refused is refused before the folder is made. Raises
    ``NonFiniteLossError`` when a loss is NaN or infinite; the epochs before it stay in the folder.
    """
    with cluster.joined(resolved.settings.cluster, report.say):
        resolved = settle(resolved)
        if not cluster.is_leader():
            _follow(resolved, report)
            return None
        with (
            cluster.fail_together()
        ):  # where the others wait for a run to be opened, as in a resume
            pin_threads(resolved)
        cluster.text_from_leader(resolved.settings.model_dump_json())
        dataset, facts = _load_together(lambda: resolved.settings, partial(load, report=report))
        resolved = name_dataset(resolved, dataset)
        settings = resolved.settings.run
        name = settings.name or resolved.settings.schedule_name
        with contextlib.ExitStack() as held:
            with cluster.fail_together():
                run = RunDirectory.create(
                    settings.runs_dir.expanduser(),
                    f"{name}-{dataset.name}" if dataset.fallback else name,
                )
                held.enter_context(run.locked())
                try:
                    storage.write_text(run.config, to_toml(*resolved))
                except StorageError:
                    run.discard()
                    raise
            _train(run, dataset, facts, resolved, report)
        return run.path


def resume(path: Path, asked: Resolved, report: Report) -> None:
    """Continue a run from its newest sound checkpoint, or say that it is done.

    Of what is asked only what was given counts. Nothing is written before all is settled. Raises
    ``BusyRunError`` where another process trains the run, ``RunError`` where there were
    checkpoints and none is sound, ``ChangedSettingsError`` for settings that it did not begin
    with, and ``DataError`` for other data.
    """
    with cluster.joined(asked.settings.cluster, report.say), contextlib.ExitStack() as held:
        asked = asked.without_cluster()
        if not cluster.is_leader():
            _follow(asked, report)
            return
        with cluster.fail_together():
            run = RunDirectory.find(path)
            held.enter_context(run.locked())
            found, reasons = checkpoint.read_newest(run.checkpoints)
            refuse_a_lost_run(run, found, reasons)
            resolved = continue_settings(run, asked, found)
            settings = resolved.settings
            pin_threads(resolved)
        if found and is_done(run, found, settings) and not list(_damage(run, found)):
            cluster.text_from_leader(NOTHING)
            report.say(
                f"{run.path} is done, with all of its {settings.run.epochs} epochs; "
                f"plateau-train resume {run} --epochs {2 * settings.run.epochs} goes further"
            )
            report.end({}, run.path)
            return
        if found and reasons:
            report.warn(*reasons, f"The run continues from epoch {found.manifest.epoch}.")
        cluster.text_from_leader(settings.model_dump_json())
        load = partial(load_again, run, before=_dataset_of(run, found), report=report)
        dataset, facts = _load_together(lambda: settings, load)
        with cluster.fail_together():
            if found is not None:
                from plateau_train.training import loop

                loop.restore(found)  # what cannot be used is refused before anything is written
            write_settings(run, resolved)
        _train(run, dataset, facts, resolved, report, found)


def _follow(asked: Resolved, report: Report) -> None:
    """Train what process 0 trains, and write nothing."""
    report.say(f"this is {cluster.describe()}; process 0 prints and writes")
    signals.hint = "process 0 says how the run is continued"
    pin_threads(asked)
    with cluster.fail_together():
        pass  # process 0 opens the run to resume
    plan = cluster.text_from_leader(NOTHING)
    if plan == NOTHING:
        return
    settings = Settings.model_validate_json(plan)
    dataset, _ = _load_together(lambda: _adopted(asked, settings), partial(load, report=report))
    from plateau_train.training import loop

    with cluster.fail_together():
        pass  # process 0 makes the folder
    loop.follow(dataset, settings)


def _adopted(asked: Resolved, settings: Settings) -> Settings:
    """Return the settings of process 0 with what is this process's own.

    Raises ``ConfigError`` for what was given here and is another value there.
    """
    theirs = Resolved(settings, asked.origins)
    problems = []
    for knob in SETTINGS:
        value = asked.value(knob)
        if knob.key in OWN:
            theirs = theirs.replace(knob.key, value, asked.origins[knob.key])
        elif asked.is_explicit(knob.key) and value != theirs.value(knob):
            problems.append(
                f"{knob.flag} is {config.as_text(value)} in {cluster.describe()}, and "
                f"{config.as_text(theirs.value(knob))} in process 0"
            )
    if problems:
        raise ConfigError(*problems, hint="start all processes with the same settings")
    return theirs.settings


def _load_together(
    choose: Callable[[], Settings],
    load: Callable[[config.DataSettings], tuple[Dataset, DatasetFacts]],
) -> tuple[Dataset, DatasetFacts]:
    """Load the data, and look whether the devices and their memory are as wanted.

    Raises ``ClusterError`` where processes differ in what they found.
    """
    with cluster.fail_together():
        settings = choose()
        dataset, facts = load(settings.data)
        from plateau_train.training import loop

        loop.enable_compilation_cache(settings.data.cache_dir)
        loop.find_mesh(settings)
        if settings.run.seeds is not None:
            loop.plan_replicas(dataset, [settings])
    for what, text in (
        ("data", facts.sha256),
        ("versions", json.dumps(environment.describe_versions())),
    ):
        if not cluster.is_same(text):
            raise ClusterError(
                f"the processes differ in their {what}: {text} in {cluster.describe()}",
                hint=f"give all of them the same {what}",
            )
    return dataset, facts


def load(settings: config.DataSettings, report: Report) -> tuple[Dataset, DatasetFacts]:
    """Load the data of a new run, and say so if it stands in for what was wanted."""
    dataset = data.load(settings)
    if dataset.fallback:
        report.warn(
            f"Training on {dataset.name} ({dataset.source}), NOT on Fashion-MNIST:",
            f"{dataset.fallback}.",
            "To get the real data: plateau-train data prepare, with a network, or with "
            "--from DIR and the four original files.",
        )
    return dataset, describe_data(dataset)


def load_again(
    run: RunDirectory, settings: config.DataSettings, before: DatasetFacts | None, report: Report
) -> tuple[Dataset, DatasetFacts]:
    """Load the data that a run began with, if it is known; raises ``DataError`` for other data."""
    del report
    try:
        dataset = data.load(settings)
    except DataUnavailableError as error:
        error.hint = "give the folder that it is in now: --data-dir DIR"
        raise
    if before is None:
        return dataset, describe_data(dataset)
    dataset = replace(dataset, fallback=before.fallback)
    facts = describe_data(dataset)
    refuse_other_data(run, before, facts, dataset)
    return dataset, facts


def refuse_other_data(
    run: RunDirectory, before: DatasetFacts, facts: DatasetFacts, dataset: Dataset
) -> None:
    """Raise ``DataError`` where the data are not those that a run began with."""
    if before.sha256 != facts.sha256:
        raise DataError(
            f"{run.path} was trained on {before.name} of SHA-256 {before.sha256[:12]}..., "
            f"and {dataset.name} ({dataset.source}) has {facts.sha256[:12]}...",
            hint="give the folder of the data that it began with: --data-dir DIR",
        )


def check(path: Path, asked: Resolved) -> Iterator[str]:
    """Verify all that a run would be resumed from, change nothing, and yield what is sound.

    Raises ``RunError`` in the end, with everything that is damaged and with what would be used,
    and ``ChangedSettingsError`` where a resume would.
    """
    run = RunDirectory.find(path)
    problems: list[str] = []
    newest: Checkpoint | None = None
    with run.locked():
        from plateau_train.training import loop

        for file in checkpoint.candidates(run.checkpoints):
            try:
                found = checkpoint.read_checkpoint(file)
                loop.restore(found)
            except RunError as error:
                problems += error.problems
                continue
            newest = newest or found
            best = newest.manifest.best_epoch
            # Where the newest is the best, a crash may have come before it got its second name.
            if file.name == checkpoint.BEST and best not in (
                found.manifest.epoch,
                newest.manifest.epoch,
            ):
                problems.append(f"{file} is of epoch {found.manifest.epoch}, the best is {best}")
                continue
            yield f"{file}: sound, epoch {found.manifest.epoch}"
        refuse_a_lost_run(run, newest, problems)
        settings = continue_settings(run, asked, newest).settings
        problems += (damage := list(_damage(run, newest)))
        if not damage:
            yield f"{run.path}: sound, its settings, history and events"
    if newest is None:
        after = "begins it again"
    elif not problems and is_done(run, newest, settings):
        after = f"has nothing to do: all of its {settings.run.epochs} epochs are done"
    else:
        after = f"continues it from epoch {newest.manifest.epoch}"
    if problems:
        raise RunError(*problems, hint=f"plateau-train resume {run} {after}")
    yield f"plateau-train resume {run} {after}"


def _train(
    run: RunDirectory,
    dataset: Dataset,
    facts: DatasetFacts,
    resolved: Resolved,
    report: Report,
    found: Checkpoint | None = None,
) -> None:
    """Train into a folder, and say of a failing disk what is safe on it."""
    from plateau_train.training import loop

    signals.hint = f"plateau-train resume {run} continues it"
    try:
        loop.fit([loop.Place(run, resolved, found)], dataset, facts, report)
    except StorageError as error:
        if not run.path.is_dir():
            error.hint = "the folder was moved or removed: resume the run where it is now"
            raise
        epoch = checkpoint.last_epoch(run.checkpoints)
        safe = "no epoch is done yet" if epoch is None else f"epoch {epoch} is safe"
        error.hint = f"{safe}: make room or give access, then {signals.hint}"
        raise


def pin_threads(resolved: Resolved) -> None:
    environment.pin_threads(resolved.settings.run.threads or environment.available_cores())


def is_done(run: RunDirectory, found: Checkpoint, settings: Settings) -> bool:
    return run.summary.exists() and found.manifest.epoch == settings.run.epochs


def _damage(run: RunDirectory, found: Checkpoint | None) -> Iterator[str]:
    """Yield what is wrong with the files that a resume writes again from a checkpoint."""
    reads: list[Callable[[], object]] = [run.settings, partial(read_drops, run.events)]
    if found is not None:  # before the first epoch it may not be there yet
        reads.append(partial(environment.read_environment, run.environment))
    for read in reads:
        try:
            read()
        except RunError as error:
            yield from error.problems
    manifest = found.manifest if found else None
    for path, history in (
        (run.metrics, manifest.records if manifest else ()),
        (run.timings, manifest.timings if manifest else ()),
    ):
        whole = storage.as_lines(history)
        try:
            written = path.read_bytes()
        except FileNotFoundError:
            written = b""
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"
            continue
        # A process that was killed may have left the last line out, or torn it.
        missing = b"" if run.summary.exists() else whole[len(written) :]
        if written + missing != whole:
            yield f"{path} does not hold the history of the newest checkpoint"


def write_settings(run: RunDirectory, resolved: Resolved) -> None:
    """Write ``config.toml`` unless it says the same already, perhaps with other origins."""
    with contextlib.suppress(RunError):
        if run.config.exists() and run.settings().settings == resolved.settings:
            return
    storage.write_text(run.config, to_toml(*resolved))


def settle(resolved: Resolved) -> Resolved:
    """Write down the number of threads and where the data are, and not what others are there."""
    if resolved.settings.run.threads is None:
        cores = environment.available_cores()
        resolved = resolved.replace("threads", cores, "the cores at the start")
    data_dir = resolved.settings.data.data_dir.expanduser()
    if not data_dir.is_absolute():  # or it would be another one for a resume elsewhere
        resolved = resolved.replace("data_dir", data_dir.absolute(), resolved.origins["data_dir"])
    return resolved.without_cluster()


def name_dataset(resolved: Resolved, dataset: Dataset) -> Resolved:
    """Write down the data set that was found in the place of ``auto``."""
    if resolved.settings.data.dataset != data.AUTO:
        return resolved
    why = f"auto: {dataset.fallback}" if dataset.fallback else "auto"
    return resolved.replace("dataset", dataset.name, why)


def describe_data(dataset: Dataset) -> DatasetFacts:
    """Say what a resumed run must find again of its data."""
    return DatasetFacts(
        name=dataset.name,
        fallback=dataset.fallback,
        sha256=dataset.sha256(),
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
    )


def _dataset_of(run: RunDirectory, found: Checkpoint | None) -> DatasetFacts | None:
    """Return what is known of the data that a run began with."""
    if found is not None:
        return found.manifest.environment.dataset
    with contextlib.suppress(RunError):  # nothing was trained yet: nothing is lost
        return environment.read_environment(run.environment).dataset
    return None


def refuse_a_lost_run(run: RunDirectory, found: Checkpoint | None, reasons: Sequence[str]) -> None:
    """Raise ``RunError`` where a run had begun and no checkpoint of it is sound.

    A failed restore never becomes a fresh start.
    """
    if found is not None:
        return
    traces = (run.metrics, run.timings, run.summary)
    if reasons or any(path.exists() and path.stat().st_size > 0 for path in traces):
        raise RunError(
            *(reasons or [f"{run.checkpoints} holds no checkpoint"]),
            hint="restore a checkpoint from a copy, or train anew; nothing was deleted",
        )
    if not run.config.exists():
        raise RunError(
            f"{run.path} is no run folder: it has no {run.config.name} and no checkpoint",
            hint=FIND_HINT,
        )


def continue_settings(run: RunDirectory, asked: Resolved, found: Checkpoint | None) -> Resolved:
    """Return the settings to go on with: those of the checkpoint, and what else is asked for.

    ``config.toml`` asks as well: it may have been edited, or hold more epochs than the run had at
    the time of the checkpoint.
    """
    sources = (asked,)
    if found is None:
        begun = _whole_settings(run)
    else:
        begun = Resolved(found.manifest.settings, found.manifest.origins)
        with contextlib.suppress(RunError):  # it is written anew
            sources = (run.settings(), asked)
    # These are of this machine, and not of the one where the run began.
    resolved = begun.replace("cache_dir", asked.settings.data.cache_dir, asked.origins["cache_dir"])
    resolved = resolved.replace("devices", asked.settings.run.devices, asked.origins["devices"])
    table = []
    for source in sources:
        for knob in SETTINGS:
            before, value = begun.value(knob), source.value(knob)
            if value == before or not source.is_explicit(knob.key):
                continue
            if knob.key in FREE and (knob.key != "epochs" or _may_grow(begun, value)):
                resolved = resolved.replace(knob.key, value, source.origins[knob.key])
            else:
                why = _why_not(begun, knob.key, value, found)
                table.append((knob.flag, config.as_text(before), config.as_text(value), why))
    if table:
        raise ChangedSettingsError(
            f"{run.path} goes on with the settings that it began with",
            hint=f"leave these out, also in {run.config}, or train anew; --epochs may grow",
            table=[("setting", "run", "asked", "why not"), *table],
        )
    return resolved


def _whole_settings(run: RunDirectory) -> Resolved:
    """Read a ``config.toml`` that nothing else vouches for; raises ``RunError`` if it was cut."""
    begun = run.settings()
    missing = [
        knob.key
        for knob in SETTINGS
        if begun.origins[knob.key] == "default" and not knob.may_be_unset
    ]
    if missing:
        raise RunError(
            f"{run.config} is not whole: it lacks {', '.join(missing)}",
            hint="restore the file from a copy, or train anew",
        )
    return begun


def _may_grow(begun: Resolved, epochs: int) -> bool:
    """Tell whether a run can go on to so many epochs: a cosine is laid over those it began with."""
    return epochs > begun.settings.run.epochs and begun.settings.optimizer.schedule != "cosine"


def _why_not(begun: Resolved, key: str, value: int, found: Checkpoint | None) -> str:
    """Say why a setting of a run cannot change."""
    if key == "epochs":
        is_longer = value > begun.settings.run.epochs
        return "the cosine was laid over these" if is_longer else "a run goes further, not back"
    if found is not None and key == "patience":
        waited = max(record.wait for record in found.manifest.final)
        if value <= waited:
            return f"the wait is {waited} already: the rule would pass {value} by and never drop"
    if found is not None and key == "accumulation_size":
        count = int(found.arrays["plateau/count"].max())
        if value <= count:
            return f"the window holds {count} already: it would never be full"
    return "it moves the result"
