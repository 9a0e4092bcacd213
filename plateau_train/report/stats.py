"""How much two groups of trainings differ in a metric, and what their seeds say of that."""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """How much higher a metric is than in another run, and what the seeds say of that."""

    mean: float
    half_width: float | None  # of the confidence interval of the mean; None where none can be had
    how: str

    def __str__(self) -> str:
        """Write the difference, and the ends of its interval in brackets."""
        if self.half_width is None:
            return _signed(self.mean)
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{_signed(self.mean)} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # which has no minus before a zero


def difference(of_each: Mapping[int, float], before: Mapping[int, float]) -> Difference:
    """Compare a metric of two runs, given for each seed, with Student's t distribution.

    Paired by seed where all seeds of one run are in the other, else as two independent samples of
    unequal variances (Welch, Biometrika 34, 1947).
    """
    counts = len(of_each), len(before)
    common = sorted(of_each.keys() & before.keys())
    mean = fmean(of_each.values()) - fmean(before.values())
    if min(counts) == 1:
        return Difference(mean, None, "none: a single seed")
    if len(common) == min(counts):
        pairs = [of_each[seed] - before[seed] for seed in common]
        mean, error, freedom = fmean(pairs), stdev(pairs) / len(pairs) ** 0.5, len(pairs) - 1
        how = f"paired, {len(pairs)} seeds"
    else:
        shares = [stdev(values.values()) ** 2 / len(values) for values in (of_each, before)]
        error, how = sum(shares) ** 0.5, f"Welch, {counts[1]} and {counts[0]} seeds"
        parts = [share**2 / (count - 1) for share, count in zip(shares, counts, strict=True)]
        freedom = sum(shares) ** 2 / sum(parts) if error else 1
    from scipy.special import stdtrit  # late: most comparisons of single trainings need none

    return Difference(mean, float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error, how)
