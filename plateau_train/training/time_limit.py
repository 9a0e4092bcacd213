"""When a command ends for ``--max-time``: after an epoch, so that a resume continues exactly."""

import math
import time
from collections import deque

from plateau_train.config import RunSettings
from plateau_train.process import clock, cluster

# The next epoch is expected to take as long as the longest of these. Their mean would be too short
# half of the time. All epochs would be too many: the delay of a single one, such as that of another
# program, would shorten the whole run.
NUM_RECENT = 5


class TimeLimit:
    """Decides before each epoch of a command whether it would end too late.

    ``is_reached`` says whether it ended the training.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.reason = f"--max-time {settings.max_time}"
        self.is_reached = False
        self._end = clock.began() + settings.max_seconds
        self._recent = deque[float](maxlen=NUM_RECENT)

    def add_epoch(self, seconds: float) -> None:
        """Record the duration of a trained epoch, with that of writing one."""
        self._recent.append(seconds)

    def permits_epoch(self) -> bool:
        """Return whether process 0 expects another epoch to end in time.

        The first epoch of a command is always permitted. A collective of ``cluster``.
        """
        expected = max(self._recent, default=-math.inf)
        _, is_reached = cluster.agree(value=int(time.monotonic() + expected > self._end))
        self.is_reached = bool(is_reached)
        return not self.is_reached
