"""Which replicas are still finite. Diverged replicas keep running, unrecorded."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from plateau_train.config import Settings
from plateau_train.errors import NonFiniteLossError
from plateau_train.run.records import Ending


class Member(NamedTuple):
    """A replica of a program: a replica of one of its runs."""

    run: int
    replica: int
    seed: int
    settings: Settings  # of the run

    def make_ending(
        self, epoch: int, reason: Literal["epochs", "diverged"], message: str
    ) -> Ending:
        """Return the ending of the replica, whose last recorded epoch is ``epoch``."""
        return Ending(
            replica=self.replica, seed=self.seed, epoch=epoch, reason=reason, message=message
        )


class DivergenceMonitor:
    """Finds the losses that are not finite, before the rule takes one for a plateau."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.is_finite = [True] * len(members)
        self._members = members
        self._last_losses: list[float | None] = [None] * len(members)
        self._endings: dict[int, Ending] = {}

    def check_steps(
        self, losses: Float32[np.ndarray, "replicas steps"], epoch: int, step: int
    ) -> None:
        """Check the losses of consecutive steps, the first of which is ``step``, from 1."""
        for row, values in enumerate(losses):
            finite = np.isfinite(values)
            if not finite.all():
                position = int(finite.argmin())
                if position > 0:
                    self._last_losses[row] = float(values[position - 1])
                where = f"at epoch {epoch}, step {step + position:,}"
                self._end(row, epoch, f"the training loss is {values[position]} {where}")
            self._last_losses[row] = float(values[-1])
        self._raise_if_none_is_left()

    def check_evaluation(
        self, losses: Mapping[str, Float32[np.ndarray, " replicas"]], epoch: int
    ) -> None:
        """Check the losses of each split after an epoch."""
        for split, values in losses.items():
            for row in np.flatnonzero(~np.isfinite(values)):
                what = f"the {split} loss is {values[row]} at the end of epoch {epoch}"
                self._end(int(row), epoch, what)
        self._raise_if_none_is_left()

    def take_endings(self) -> dict[int, Ending]:
        """Return the endings of the replicas that diverged since the last call, by their rows."""
        endings, self._endings = self._endings, {}
        return endings

    def _end(self, row: int, epoch: int, problem: str) -> None:
        if not self.is_finite[row]:
            return
        self.is_finite[row] = False
        last = self._last_losses[row]
        if last is not None:
            problem += f"; the last finite training loss was {last:.4g}"
        self._endings[row] = self._members[row].make_ending(epoch - 1, "diverged", problem)

    def _raise_if_none_is_left(self) -> None:
        """Raise ``NonFiniteLossError`` where every replica has diverged."""
        if any(self.is_finite):
            return
        row, ending = list(self._endings.items())[-1]
        seed = f"seed {ending.seed}: " if len(self._members) > 1 else ""
        rate = self._members[row].settings.optimizer.learning_rate
        raise NonFiniteLossError(
            f"{seed}{ending.message}", hint=f"train with a smaller --learning-rate than {rate:g}"
        )
