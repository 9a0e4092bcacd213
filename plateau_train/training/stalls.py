"""Warnings, once per replica, that its scale or its parameters no longer change."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from plateau_train.numerics.step import TrainState
from plateau_train.run.records import EpochRecord, RunWarning
from plateau_train.training.endings import Member

# The fraction of the parameters that an epoch has to change. Those next to 0, such as some biases,
# still change long after the updates of all others are too small.
LEAST_CHANGED = 0.01


class Stalls:
    """Checks replicas after each epoch.

    ``warned`` has the run, the replica and the reason of each past warning.
    """

    def __init__(self, members: Sequence[Member], *, follows_rule: bool) -> None:
        self.warned: set[tuple[int, int | None, str]] = set()
        self._members = members
        self._follows_rule = follows_rule  # whether the plateau rule lowers the scale

    def check(
        self, row: int, record: EpochRecord, before: TrainState | None, after: TrainState
    ) -> Iterator[RunWarning]:
        """Yield new warnings of a replica, given the host states before and after an epoch."""
        checks = {
            "min-scale": lambda: self._check_scale(row, record, after),
            "params": lambda: _check_params(row, record, before, after),
        }
        member = self._members[row]
        for reason, check in checks.items():
            key = (member.run, member.replica, reason)
            if key not in self.warned and (message := check()):
                self.warned.add(key)
                yield RunWarning(
                    replica=record.replica,
                    seed=record.seed,
                    epoch=record.epoch,
                    reason=reason,
                    message=message,
                )

    def _check_scale(self, row: int, record: EpochRecord, after: TrainState) -> str | None:
        lowest = self._members[row].settings.plateau.min_scale
        # Without the factor of a warm-up, which the recorded scale has.
        if not self._follows_rule or after.plateau.scale[row] > np.float32(lowest):
            return None
        return (
            f"the scale has reached --min-scale ({lowest:g}) in epoch {record.epoch}: the rule "
            "cannot lower it further"
        )


def _check_params(
    row: int, record: EpochRecord, before: TrainState | None, after: TrainState
) -> str | None:
    if before is None:
        return None
    leaves = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    changes = [old[row] != new[row] for old, new in leaves]
    num_changed, num_params = sum(map(np.count_nonzero, changes)), sum(map(np.size, changes))
    if num_changed >= LEAST_CHANGED * num_params:
        return None
    return (
        f"epoch {record.epoch} changed {num_changed:,} of {num_params:,} parameters, and the "
        f"learning rate is {record.learning_rate:.3g} now: the other updates are 0, or too small "
        "for float32"
    )
