"""The replicas of a run, each with its epochs, its drops and its ending."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from plateau_train.errors import ConfigError, RunError
from plateau_train.run.records import Drop, Ending, EpochRecord, Event


class History(NamedTuple):
    """One replica: its epochs, epoch 0 first, its drops, and its ending if it has ended."""

    replica: int
    seed: int
    records: Sequence[EpochRecord]
    drops: Sequence[Drop]
    ending: Ending | None = None

    @property
    def last_epoch(self) -> int:
        return self.records[-1].epoch

    def until(self, num_epochs: int) -> "History":
        """Return the history without what happened after some epochs."""
        # A replica diverges in the epoch after its last one.
        is_over = self.ending and self.ending.epoch + self.has_diverged <= num_epochs
        return self._replace(
            records=self.records[: num_epochs + 1],
            drops=[drop for drop in self.drops if drop.epoch <= num_epochs],
            ending=self.ending if is_over else None,
        )

    def is_over(self, num_epochs: int) -> bool:
        """Return whether nothing is left to train in a run of this number of epochs."""
        return self.ending is not None and self.ending.is_final(num_epochs)

    @property
    def has_diverged(self) -> bool:
        return self.ending is not None and not self.ending.is_complete


def make_histories(
    records: Iterable[EpochRecord],
    events: Iterable[Event],
    path: Path,
) -> list[History]:
    """Sort records and events by replica.

    Raises ``RunError`` unless the epochs of each replica are 0, 1, 2, ... and all are alike;
    ``path`` is the file of the records.
    """
    by_replica, drops, endings, split = defaultdict(list), defaultdict(list), {}, None
    for number, record in enumerate(records, start=1):
        past = by_replica[record.replica]
        if record.epoch != len(past):
            raise _damaged(path, number, f"is of epoch {record.epoch}, not {len(past)}")
        if problem := _misplaced(record, past):
            raise _damaged(path, number, problem)
        split = split or record.score_split
        if record.score_split != split:
            raise _damaged(path, number, "lacks validation metrics, or is the only one with them")
        past.append(record)
    for event in events:
        if isinstance(event, Drop):
            drops[event.replica].append(event)
        elif isinstance(event, Ending):
            endings[event.replica] = event
    histories = []
    for replica, past in sorted(by_replica.items()):
        ending = endings.get(replica)
        if ending and ending.epoch != past[-1].epoch:
            ending = None  # the run was continued after it, or its last epochs cannot be read
        histories.append(History(replica, past[0].seed, past, drops[replica], ending))
    return histories


def _misplaced(record: EpochRecord, past: Sequence[EpochRecord]) -> str:
    """Return what is wrong with the steps of a record after the ones before it, or nothing."""
    last_step = past[-1].step if past else -1
    if record.step <= last_step or bool(record.epoch) != bool(record.step):
        return f"has step {record.step:,}, which cannot be the last of epoch {record.epoch}"
    steps = [last_step, *(observation.step for observation in record.observations), record.step]
    if any(later <= step for step, later in pairwise(steps[:-1])) or steps[-2] > record.step:
        return f"has observations at steps that epoch {record.epoch} does not have"
    return ""


def _damaged(path: Path, number: int, problem: str) -> RunError:
    return RunError(f"{path} line {number} {problem}", hint="restore the file from a copy")


def find_replica(histories: Sequence[History], replica: int, run: object) -> History:
    """Return one replica; raises ``ConfigError`` where there is none of this number."""
    for history in histories:
        if history.replica == replica:
            return history
    numbers = ", ".join(str(history.replica) for history in histories)
    raise ConfigError(
        f"{run} has no replica {replica}", hint=f"use --replica with one of {numbers}"
    )


def completed(histories: Sequence[History]) -> list[History]:
    """Leave out the replicas that diverged: a mean over them would jump where one ends.

    If all diverged, those with the most epochs are left.
    """
    whole = [history for history in histories if not history.has_diverged]
    furthest = max(history.last_epoch for history in histories)
    return whole or [history for history in histories if history.last_epoch == furthest]


def early_endings(histories: Sequence[History]) -> list[Ending]:
    """Return the endings of the replicas that their rule ended."""
    return [each.ending for each in histories if each.ending and each.ending.is_early]


def records_until(histories: Sequence[History], epoch: int) -> list[EpochRecord]:
    """Return the record of each replica in an epoch, or the last one if it ended before.

    Those that diverged before are left out.
    """
    return [
        history.records[min(epoch, history.last_epoch)]
        for history in histories
        if history.last_epoch >= epoch or (history.ending and history.ending.is_complete)
    ]


def records_at(histories: Sequence[History], epoch: int) -> list[EpochRecord]:
    """Return the record of each replica that has finished an epoch."""
    return [history.records[epoch] for history in histories if history.last_epoch >= epoch]
