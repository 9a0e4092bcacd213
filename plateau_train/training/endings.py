"""Which replicas are active, and why the others ended. Those keep running, unrecorded."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from plateau_train.config import Settings
from plateau_train.errors import NonFiniteLossError
from plateau_train.run.records import Ending


class Member(NamedTuple):
    """The run and the replica that a row of the arrays of a program belongs to."""

    run: int
    replica: int
    seed: int
    settings: Settings  # of the run


class Endings:
    """Decides when each replica of a program ends.

    ``is_active`` says which have not ended, ``has_completed`` whether one has without diverging.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.is_active = [True] * len(members)
        self.has_completed = False
        self._members = members
        self._last_losses: list[float | None] = [None] * len(members)
        self._new: dict[int, Ending] = {}

    def check_steps(
        self, losses: Float32[np.ndarray, "replicas steps"], epoch: int, step: int
    ) -> None:
        """End the replicas with a loss that is not finite, before anything of it is recorded.

        The losses are of consecutive steps, the first of which is ``step``, from 1. Raises
        ``NonFiniteLossError`` where all replicas have diverged.
        """
        for row, values in enumerate(losses):
            finite = np.isfinite(values)
            if not finite.all():
                position = int(finite.argmin())
                if position > 0:
                    self._last_losses[row] = float(values[position - 1])
                where = f"at epoch {epoch}, step {step + position:,}"
                self._diverge(row, epoch, f"the training loss is {values[position]} {where}")
            self._last_losses[row] = float(values[-1])
        self._raise_if_all_diverged()

    def check_evaluation(
        self, losses: Mapping[str, Float32[np.ndarray, " replicas"]], epoch: int
    ) -> None:
        """End the replicas with a loss of a split that is not finite; raises as ``check_steps``."""
        for split, values in losses.items():
            for row in np.flatnonzero(~np.isfinite(values)).tolist():
                what = f"the {split} loss is {values[row]} at the end of epoch {epoch}"
                self._diverge(row, epoch, what)
        self._raise_if_all_diverged()

    def end(self, row: int, epoch: int, reason: str, message: str) -> None:
        """End a replica whose last recorded epoch is ``epoch``."""
        self.is_active[row] = False
        member = self._members[row]
        ending = Ending(
            replica=member.replica, seed=member.seed, epoch=epoch, reason=reason, message=message
        )
        self._new[row] = ending
        self.has_completed |= ending.is_complete

    def take(self) -> dict[int, Ending]:
        """Return the endings since the last call, by the rows of their replicas."""
        new, self._new = self._new, {}
        return new

    def _diverge(self, row: int, epoch: int, problem: str) -> None:
        if not self.is_active[row]:
            return
        last = self._last_losses[row]
        if last is not None:
            problem += f"; the last finite training loss was {last:.4g}"
        self.end(row, epoch - 1, "diverged", problem)

    def _raise_if_all_diverged(self) -> None:
        if any(self.is_active) or self.has_completed:
            return
        row, ending = list(self._new.items())[-1]
        name = f"seed {ending.seed}: " if len(self._members) > 1 else ""
        rate = self._members[row].settings.optimizer.learning_rate
        raise NonFiniteLossError(
            f"{name}{ending.message}", hint=f"train with a smaller --learning-rate than {rate:g}"
        )
