"""The difference of a metric between two runs, with a confidence interval over their seeds."""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import stdtrit

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """How much higher a metric is than in the baseline, as the mean over seeds.

    ``half_width`` is half of the confidence interval, None if one of the runs has a single seed.
    ``method`` says in words how the interval was computed.
    """

    mean: float
    half_width: float | None
    method: str

    def __str__(self) -> str:
        """Return the difference, and its interval in brackets."""
        if self.half_width is None:
            return _signed(self.mean)
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{_signed(self.mean)} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # the sum has no minus sign before a zero


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compare a metric of two runs, given for each seed, with Student's t distribution.

    The runs are paired by seed if all seeds of one are seeds of the other. Otherwise they are
    independent samples of unequal variances (Welch, Biometrika 34, 1947).
    """
    counts = len(values), len(baseline)
    shared = sorted(values.keys() & baseline.keys())
    mean = fmean(values.values()) - fmean(baseline.values())
    if min(counts) == 1:
        return Difference(mean, None, "none: a single seed")
    if len(shared) == min(counts):
        pairs = [values[seed] - baseline[seed] for seed in shared]
        mean, error, freedom = fmean(pairs), stdev(pairs) / len(pairs) ** 0.5, len(pairs) - 1
        method = f"paired, {len(pairs)} seeds"
    else:
        shares = [stdev(sample.values()) ** 2 / len(sample) for sample in (values, baseline)]
        error, method = sum(shares) ** 0.5, f"Welch, {counts[1]} and {counts[0]} seeds"
        parts = [share**2 / (count - 1) for share, count in zip(shares, counts, strict=True)]
        freedom = sum(shares) ** 2 / sum(parts) if error else 1
    quantile = float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return Difference(mean, quantile * error, method)
