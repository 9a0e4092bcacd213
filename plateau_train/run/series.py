"""The values that the plateau rule is replayed over, and the steps at which a run measured them."""

from collections.abc import Sequence
from typing import NamedTuple

from plateau_train.config import OptimizerSettings, PlateauSettings, Schedule
from plateau_train.errors import PROGRAM, RunError
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


class SeriesWarmup(NamedTuple):
    """The warm-up before the rule observes a value."""

    scales: Sequence[float] = ()  # after each of the first values, which the rule does not observe
    curve: Sequence[tuple[float, float]] = ()  # positions, and the scale at each of them


def warmup_curve(
    optimizer: OptimizerSettings, steps_per_epoch: float, last: float
) -> list[tuple[float, float]]:
    """Return epochs up to the ``last`` and the factors there, to draw a warm-up, if any."""
    num_steps = optimizer.warmup_steps(steps_per_epoch)
    steps = [num_steps * share / 100 for share in range(101)] if num_steps else []
    return [
        (step / steps_per_epoch, optimizer.warmup_factor(step, steps_per_epoch))
        for step in steps
        if step / steps_per_epoch <= last
    ]


class Series(NamedTuple):
    """Values for the rule, lower is better; the fields after the rule are those of a run."""

    title: str  # where the values come from
    observed: str  # one observation, in words
    values: Sequence[float]
    # Its accumulation size averages ``values``, and its patience and cooldown are observations.
    rule: PlateauSettings
    warmup: SeriesWarmup = SeriesWarmup()
    observation_epochs: float | None = None  # epochs of an observation
    positions: Sequence[Position] = ()  # one per value
    drops: Sequence[Drop] = ()  # as recorded
    schedule: Schedule | None = None
    replica: int | None = None
    seed: int | None = None

    def place_of(self, number: int) -> str:
        """Return where a value was measured: in a run its epoch and step, otherwise its number."""
        if not self.positions:
            return f"value {number}"
        position = self.positions[number - 1]
        return f"epoch {position.epoch}, after {position.step:,} steps"


def read_values(
    run: Run, history: History, rule: PlateauSettings
) -> tuple[list[float], list[Position]]:
    """Return what a run measured for a rule, and where.

    In a train mode these are the observations that it recorded, which are means of several steps;
    otherwise the metric at the end of each epoch, an accuracy as it is. Raises ``RunError`` where
    the run did not record such values.
    """
    own, last = run.settings.plateau, history.records[-1]
    if rule.split != "train":
        metric = rule.mode.replace("-", "_")
        measured = [(record.step, getattr(record, metric)) for record in history.records[1:]]
        problem, hint = "has not finished an epoch", f"{PROGRAM} resume {run.directory}"
    elif rule.mode != own.mode:
        raise RunError(
            f"{run.directory} recorded no windows of the {rule.mode.replace('-', ' ')}: "
            f"its mode was {own.mode}",
            hint=OTHER_MODES,
        )
    elif (size := rule.accumulation_size) != own.accumulation_size:
        raise RunError(
            f"{run.directory} recorded means of {own.accumulation_size:,} steps, not of {size:,}",
            hint=f"leave out --accumulation-size {size}",
        )
    else:
        observations = [each for record in history.records for each in record.observations]
        measured = [(each.step, each.measured) for each in observations]
        problem = f"recorded no observation: the first one takes {size:,} steps, and the run has"
        problem, hint = f"{problem} {last.step:,}", OTHER_MODES
    if not measured:
        raise RunError(f"{run.directory} {problem}", hint=hint)
    num_steps = last.step // last.epoch
    positions = [Position(-(-step // num_steps), step, step / num_steps) for step, _ in measured]
    return [value for _, value in measured], positions
