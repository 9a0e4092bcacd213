"""How many steps a call of the devices takes.

After each call the progress is reported, losses are checked and signals are handled. Chunks leave
the bits unchanged.
"""

# Seconds that a call takes about. On a CPU a replica takes all of its steps before the next one
# begins, and few steps are not worth fetching its state for.
REPLICA_SECONDS, MOST_SECONDS = 0.25, 2.0
LONGEST_SECONDS = 0.5  # the same, where a call can be a whole epoch
MOST_TRIAL_STEPS = 16


class Chunks:
    """Chooses ``length``, the number of steps, from the time that calls take.

    With static bounds each length is compiled, so it divides the number of steps in an epoch, and
    it changes at the end of an epoch only: few steps at first, then the whole epoch if it is short.
    """

    def __init__(self, num_steps: int, num_replicas: int, *, is_static: bool) -> None:
        self._num_steps = num_steps
        self._seconds = min(num_replicas * REPLICA_SECONDS, MOST_SECONDS)
        self._is_static = is_static
        self._compiled = set[int]()
        self._rate = 0.0  # the highest so far, in steps a second
        self.length = self._longest_below(MOST_TRIAL_STEPS) if is_static else 1

    def propose(self, num_steps: int, seconds: float, *, is_epoch_over: bool) -> int:
        """Return the length for the next call, after one of some steps."""
        rate = num_steps / seconds
        if not self._is_static:
            # At most eight times the last: a short chunk says little about the rate.
            return max(1, min(int(rate * self._seconds), 8 * self.length, self._num_steps))
        if num_steps in self._compiled:
            self._rate = max(self._rate, rate)
        self._compiled.add(num_steps)
        if not is_epoch_over or not self._rate:
            return self.length
        return self._longest_below(self._rate * LONGEST_SECONDS)

    def _longest_below(self, most: float) -> int:
        """Return the largest divisor of the steps of an epoch that is not above ``most``, or 1."""
        lengths = range(1, min(int(max(1, most)), self._num_steps) + 1)
        return max(each for each in lengths if self._num_steps % each == 0)
