"""The trainings of a run, as its folder tells them."""

from collections.abc import Sequence

from plateau_train.errors import ConfigError, RunError
from plateau_train.run.directory import RunDirectory
from plateau_train.run.records import History, read_drops, read_history, split_replicas


def read_histories(run: RunDirectory) -> list[History]:
    """Read what each replica has done so far, without those that have finished no epoch.

    Reads ``config.toml``, ``metrics.jsonl`` and ``events.jsonl`` and nothing else. Raises
    ``RunError`` for a file that is damaged, and where there is no epoch at all.
    """
    seeds = run.settings().settings.run.replica_seeds
    histories = split_replicas(seeds, read_history(run.metrics), read_drops(run.events))
    begun = [history for history in histories if history.records]
    if not begun:
        raise RunError(
            f"{run.metrics} is empty: no epoch was finished",
            hint=f"plateau-train resume {run} begins it again",
        )
    return begun


def find_replica(histories: Sequence[History], replica: int, run: RunDirectory) -> History:
    """Return one training of a run; raises ``ConfigError`` where there is none of this number."""
    found = next((history for history in histories if history.replica == replica), None)
    if found is None:
        numbers = ", ".join(str(history.replica) for history in histories)
        raise ConfigError(f"{run} has no replica {replica}", hint=f"it has {numbers}")
    return found


def completed(histories: Sequence[History], num_epochs: int | None = None) -> list[History]:
    """Return the replicas that reached an epoch, without their later epochs and drops.

    The default is the last epoch that any of them reached: a mean over replicas would jump at the
    epoch where one of them diverged.
    """
    if num_epochs is None:
        num_epochs = max(history.records[-1].epoch for history in histories)
    return [
        history._replace(
            records=history.records[: num_epochs + 1],
            drops=[drop for drop in history.drops if drop.epoch <= num_epochs],
        )
        for history in histories
        if history.records[-1].epoch >= num_epochs
    ]
