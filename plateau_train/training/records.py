"""The arrays of an epoch as records and drops."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from plateau_train.numerics.plateau import ENDINGS, Observation, PlateauState
from plateau_train.numerics.step import TrainState
from plateau_train.run.journal import EpochLines
from plateau_train.run.records import Drop, EpochRecord, ObservedValue, Timing, ending_reason
from plateau_train.training.endings import Member
from plateau_train.training.program import EpochArrays, Program
from plateau_train.training.stalls import count_changed


def make_lines(
    program: Program, arrays: EpochArrays, epoch: int, before: TrainState | None
) -> list[EpochLines]:
    """Return what each run records of an epoch: a record for each replica active in it.

    ``before`` is the host state before the epoch; None before epoch 0. Ends the replicas that have
    finished all of their epochs, or that their rule has ended.
    """
    endings, timing = program.endings, _timing(program, arrays, epoch)
    observed_by_row = _observations(arrays, epoch, program.steps_per_epoch)
    num_changed = before and count_changed(before.params, arrays.state.params)
    lines = [EpochLines([], [], [timing]) for _ in program.runs]
    for row, member in enumerate(program.members):
        if not endings.is_active[row]:
            continue
        records, events, _ = lines[member.run]
        observed = observed_by_row[row]
        records.append(_record(program, arrays, row, epoch, observed))
        if program.replicas.spec.schedule.follows_rule:
            events += _drops(member, observed, program.steps_per_epoch)
        events += program.stalls.check(row, records[-1], num_changed, arrays.state)
        if ending := ENDINGS[arrays.state.plateau.ending[row]]:
            message = _ending_message(ending, member, arrays.state.plateau, row)
            endings.end(row, epoch, ending, message)
        elif epoch == member.settings.run.epochs:
            endings.end(row, epoch, "epochs", f"epoch {epoch}, the last one")
    for row, ending in endings.take().items():
        lines[program.members[row].run].events.append(ending)
    return lines


def _timing(program: Program, arrays: EpochArrays, epoch: int) -> Timing:
    """Return the run's share of the duration of an epoch."""
    num_runs, batch_size = len(program.runs), program.replicas.spec.batch_size
    num_images = program.steps_per_epoch * batch_size * len(program.members)
    return Timing(
        epoch=epoch,
        train_seconds=arrays.train_seconds / num_runs,
        evaluate_seconds=arrays.evaluate_seconds / num_runs,
        samples_per_second=num_images / arrays.train_seconds if epoch else None,
    )


def _observations(
    arrays: EpochArrays, epoch: int, steps_per_epoch: int
) -> list[list[tuple[int, Observation]]]:
    """Return each new observation of each replica with its step, counted from the run's start."""
    # A column for each of the epoch's steps, or one for its evaluation.
    table = Observation(*(each.reshape(len(each), -1) for each in arrays.observation))
    is_new = np.diff(table.number, prepend=arrays.num_observations[:, None]) > 0
    first_step = epoch * steps_per_epoch - is_new.shape[1] + 1
    observed = [list[tuple[int, Observation]]() for _ in is_new]
    for row, column in np.argwhere(is_new).tolist():
        observation = Observation(*(each[row, column].item() for each in table))
        observed[row].append((first_step + column, observation))
    return observed


def _drops(
    member: Member,
    observed: list[tuple[int, Observation]],
    steps_per_epoch: int,
) -> Iterator[Drop]:
    """Yield the observations that lowered the scale."""
    base = member.settings.optimizer.learning_rate
    for step, observation in observed:
        scale, new_scale = float(observation.scale_before), float(observation.scale)
        if new_scale < scale:
            yield Drop(
                replica=member.replica,
                seed=member.seed,
                epoch=-(-step // steps_per_epoch),
                step=step,
                position=step / steps_per_epoch,
                scale_before=scale,
                scale_after=new_scale,
                learning_rate_before=base * scale,
                learning_rate_after=base * new_scale,
                observed=member.settings.plateau.describe_observation(),
                value=float(observation.value),
                best=float(observation.best),
                to_beat=float(observation.threshold),
                waited=int(observation.wait),
            )


def _ending_message(ending: str, member: Member, plateau: PlateauState, row: int) -> str:
    """Return why the rule of a replica ended it: its last observation."""
    seen = plateau.observation
    value, best, to_beat = (float(each[row]) for each in (seen.value, seen.best, seen.threshold))
    rule, waited = member.settings.plateau, int(seen.wait[row])
    observed = rule.describe_observation()
    return ending_reason(ending, rule, observed, value, best, to_beat, waited)


def _record(
    program: Program,
    arrays: EpochArrays,
    row: int,
    epoch: int,
    observed: list[tuple[int, Observation]],
) -> EpochRecord:
    """Return the metrics of a replica and the state of its rule after an epoch."""
    member, plateau = program.members[row], arrays.state.plateau
    is_raw = member.settings.plateau.smooth == "none"
    has_best = bool(np.isfinite(plateau.best_value[row]))
    scale = float(arrays.state.scale[row])
    scores: dict[str, Any] = {
        f"{split}_{name}": float(values[row])
        for split, metrics in arrays.metrics.items()
        for name, values in metrics._asdict().items()
    }
    return EpochRecord(
        replica=member.replica,
        seed=member.seed,
        epoch=epoch,
        step=epoch * program.steps_per_epoch,
        **scores,
        scale=scale,
        learning_rate=member.settings.optimizer.learning_rate * scale,
        wait=int(plateau.plateau_count[row]),
        cooldown=int(plateau.cooldown_count[row]),
        best_value=float(plateau.best_value[row]) if has_best else None,
        to_beat=float(plateau.threshold[row]) if has_best else None,
        observations=tuple(
            ObservedValue(
                step=step,
                value=float(observation.value),
                raw=None if is_raw else float(observation.raw),
            )
            for step, observation in observed
        ),
    )
