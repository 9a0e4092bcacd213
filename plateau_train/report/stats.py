"""The difference of a metric between two runs, with a confidence interval over their seeds."""

from collections.abc import Mapping
from functools import cache
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
import scipy  # its modules are imported on first use

from plateau_train.run.results import ROUNDING

CONFIDENCE = 0.95
POWER = 0.8
SMALL_DIFFERENCE = 0.001  # in accuracy or nats


class Difference(NamedTuple):
    """How much higher a metric is than in the baseline, as the mean over seeds.

    ``half_width`` is half of the confidence interval, None if one of the runs has a single seed.
    ``method`` says in words how the interval was computed. The numbers of seeds are those of
    ``num_pairs``, None if the runs are not paired.
    """

    mean: float
    half_width: float | None
    method: str
    seeds_for_0_001: int | None = None  # to detect a difference of 0.001
    seeds_for_difference: int | None = None  # to detect ``mean``; None where that is 0

    def __str__(self) -> str:
        """Return the difference, and its interval in brackets."""
        if self.half_width is None:
            return _signed(self.mean)
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{_signed(self.mean)} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # the sum has no minus sign before a zero


def difference(
    values: Mapping[int, float], baseline: Mapping[int, float], *, num_runs: int = 1
) -> Difference:
    """Compare a metric of two runs, given for each seed, with Student's t distribution.

    The runs are paired by seed if all seeds of one are seeds of the other. Otherwise they are
    independent samples of unequal variances (Welch, Biometrika 34, 1947). The interval is corrected
    for the ``num_runs`` runs that are compared with this baseline, as in ``critical_value``.
    """
    counts = len(values), len(baseline)
    shared = sorted(values.keys() & baseline.keys())
    mean, seeds = fmean(values.values()) - fmean(baseline.values()), (None, None)
    pairs = [values[seed] - baseline[seed] for seed in shared]
    if is_paired := len(pairs) == min(counts):
        mean = fmean(pairs)
    if min(counts) == 1:
        return Difference(mean, None, "none: a single seed")
    if is_paired:
        deviation, freedom = stdev(pairs), len(pairs) - 1
        error = deviation / len(pairs) ** 0.5
        method = f"paired, {len(pairs)} seeds"
        seeds = num_pairs(SMALL_DIFFERENCE, deviation), num_pairs(mean, deviation)
    else:
        shares = [stdev(sample.values()) ** 2 / len(sample) for sample in (values, baseline)]
        error, method = sum(shares) ** 0.5, f"Welch, {counts[1]} and {counts[0]} seeds"
        parts = [share**2 / (count - 1) for share, count in zip(shares, counts, strict=True)]
        freedom = sum(shares) ** 2 / sum(parts) if error else 1
    method += f", Dunnett for {num_runs} runs" * (num_runs > 1)
    return Difference(mean, critical_value(num_runs, freedom) * error, method, *seeds)


@cache
def critical_value(num_runs: int, freedom: float) -> float:
    """Return the two-sided critical value of t for the comparison of several runs with one.

    For one run it is the quantile of Student's t, for more that of Dunnett (JASA 50, 1955), with
    correlation 0.5. Given the standard error, as a multiple s of its true value, and the baseline,
    as its distance z from its true mean, the runs are independent:
    P(all |t| < c) = E over s and z of (Phi(z + sqrt(2) c s) - Phi(z - sqrt(2) c s)) ** num_runs.
    """
    tail = (1 - CONFIDENCE) / 2
    single, bonferroni = (
        float(scipy.special.stdtrit(freedom, 1 - tail / each)) for each in (1, num_runs)
    )
    if num_runs == 1:
        return single
    # Both expectations as Gauss-Legendre sums; the rest of the distributions is below 1e-13.
    nodes, weights = scipy.special.roots_legendre(200)
    z = 8 * nodes
    z_weights = weights * np.exp(-(z**2) / 2)
    low, high = np.log(scipy.special.chdtri(freedom, [1 - 1e-14, 1e-14]) / freedom) / 2
    log_s = (low + high + (high - low) * nodes) / 2
    # s is distributed as the square root of chi-squared over its degrees of freedom.
    log_density = freedom * (log_s - np.exp(2 * log_s) / 2)
    s_weights = weights * np.exp(log_density - log_density.max())

    def excess(critical: float) -> float:
        reach = 2**0.5 * critical * np.exp(log_s)[:, None]
        inside = (scipy.special.ndtr(z + reach) - scipy.special.ndtr(z - reach)) ** num_runs
        mean = s_weights @ inside @ z_weights / (s_weights.sum() * z_weights.sum())
        return float(mean) - CONFIDENCE

    return float(scipy.optimize.brentq(excess, single, bonferroni))


def num_pairs(mean: float, deviation: float) -> int | None:
    """Return how many pairs of runs detect a mean difference with a power of at least 0.8.

    The test is the paired t-test at 5 %, two-sided. ``deviation`` is the standard deviation of the
    differences. Returns None for a difference of 0.
    """
    if abs(mean) < ROUNDING:
        return None
    ratio = max(deviation / abs(mean), 0.05)  # up to there, two pairs have the power

    def has_power(count: int) -> bool:
        # The square of a noncentral t has a noncentral F distribution, with both tails in one.
        square = critical_value(1, count - 1) ** 2
        return scipy.special.ncfdtr(1, count - 1, count / ratio**2, square) <= 1 - POWER

    # With a known deviation it is chi-squared. An estimated one takes a few more pairs.
    square = scipy.special.ndtri((1 + CONFIDENCE) / 2) ** 2
    least = max(2, int(scipy.special.chndtrinc(square, 1, 1 - POWER) * ratio**2))
    return next((count for count in range(least, least + 9) if has_power(count)), least + 9)
