"""Warnings, once per replica, that its scale or its parameters no longer change."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int64, PyTree

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
        self,
        row: int,
        record: EpochRecord,
        num_changed: Int64[np.ndarray, " replicas"] | None,
        after: TrainState,
    ) -> Iterator[RunWarning]:
        """Yield new warnings of a replica after an epoch, given its host state.

        ``num_changed`` is that of ``count_changed``; None before epoch 1.
        """
        checks = {
            "min-scale": lambda: self._check_scale(row, record, after),
            "params": lambda: _check_params(row, record, num_changed, after),
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


def count_changed(before: PyTree[np.ndarray], after: PyTree[np.ndarray]) -> Int64[np.ndarray, " n"]:
    """Count the parameters of each replica that an epoch has changed, given those on the host."""
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    changed = [(old != new).reshape(len(old), -1) for old, new in leaves]
    return np.sum([np.count_nonzero(each, axis=1) for each in changed], axis=0)


def _check_params(
    row: int,
    record: EpochRecord,
    num_changed: Int64[np.ndarray, " replicas"] | None,
    after: TrainState,
) -> str | None:
    num_params = sum(leaf[row].size for leaf in jax.tree.leaves(after.params))
    if num_changed is None or num_changed[row] >= LEAST_CHANGED * num_params:
        return None
    return (
        f"epoch {record.epoch} changed {num_changed[row]:,} of {num_params:,} parameters, and the "
        f"learning rate is {record.learning_rate:.3g} now: the other updates are 0, or too small "
        "for float32"
    )
