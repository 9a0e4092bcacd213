"""The values that the plateau rule is replayed over, and the steps at which a run measured them."""

from collections.abc import Sequence
from typing import NamedTuple

from plateau_train.config import PlateauSettings, Schedule
from plateau_train.errors import RunError
from plateau_train.run.history import History
from plateau_train.run.reader import Run
from plateau_train.run.records import Drop

# The hint where a run has not recorded the requested values.
OTHER_MODES = "--mode test-loss and --mode test-accuracy replay what every run recorded"


class Position(NamedTuple):
    """Where in a run a value was measured."""

    epoch: int
    step: int  # optimizer updates so far
    position: float  # in epochs


class Series(NamedTuple):
    """Values for the rule, lower is better; the last three fields are those of a run."""

    title: str  # where the values come from
    observed: str  # one observation, in words
    values: Sequence[float]
    rule: PlateauSettings  # its accumulation size averages ``values``
    positions: Sequence[Position] = ()  # one per value
    drops: Sequence[Drop] = ()  # as recorded
    schedule: Schedule | None = None


def lowers_by_time(schedule: Schedule) -> bool:
    """Return whether a schedule lowers the rate at fixed steps, whatever is observed."""
    return schedule in ("cosine", "step")


def read_observations(
    run: Run, history: History, rule: PlateauSettings
) -> tuple[list[float], list[Position]]:
    """Return the observations that a run recorded during its epochs, for a rule like its own.

    Raises ``RunError`` if ``rule`` observes something else, or if there are no observations.
    """
    own, last = run.settings.plateau, history.records[-1]
    size = own.accumulation_size
    if rule.mode != own.mode:
        raise RunError(
            f"{run.directory} recorded no windows of the {rule.mode.replace('-', ' ')}: "
            f"its mode was {own.mode}",
            hint=OTHER_MODES,
        )
    if rule.accumulation_size != size:
        raise RunError(
            f"{run.directory} recorded means of {size:,} steps, not of {rule.accumulation_size:,}",
            hint=f"leave out --accumulation-size {rule.accumulation_size}",
        )
    observations = [each for record in history.records for each in record.observations]
    if not observations:
        raise RunError(
            f"{run.directory} recorded no observation: the first one takes {size:,} steps, and the "
            f"run made {last.step:,}",
            hint=OTHER_MODES,
        )
    num_steps = last.step // last.epoch
    positions = [
        Position(-(-each.step // num_steps), each.step, each.step / num_steps)
        for each in observations
    ]
    return [each.value for each in observations], positions


def read_evaluations(
    run: Run, history: History, rule: PlateauSettings
) -> tuple[list[float], list[Position]]:
    """Return the metric of a rule's mode at the end of each epoch, an accuracy as it is.

    Raises ``RunError`` if the run has not finished an epoch.
    """
    records = history.records[1:]
    if not records:
        raise RunError(
            f"{run.directory} has not finished an epoch",
            hint=f"plateau-train resume {run.directory}",
        )
    scores = [getattr(record, rule.mode.replace("-", "_")) for record in records]
    return scores, [Position(record.epoch, record.step, record.epoch) for record in records]
