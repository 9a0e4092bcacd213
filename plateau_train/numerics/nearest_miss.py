"""The longest wait of the plateau rule that led to no drop, and what would have lowered the scale.

The changes are found by replay. The work is bounded: ``NUM_RULES`` rules are replayed at once, the
smallest changes first, until one of them lowers the scale. For each setting this repeats until
``MAX_STEPS`` values are replayed; changes beyond are not found.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_CEILING, Context
from functools import partial
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Float64, Int32

from plateau_train import config
from plateau_train.numerics.plateau import PlateauRule, PlateauState
from plateau_train.numerics.replay import Row

NUM_RULES = 32
MIN_SIZE = 128  # of the padded values: short series share one compiled program
MAX_STEPS = 2**19
MAX_LOWS = 1000  # the last ones, which have up to half a million critical values of rtol

# A smaller change of rtol may have no effect: thresholds are rounded to float32.
RESOLUTION = 2 * float(np.finfo(np.float32).eps)


class NearestMiss(NamedTuple):
    """The longest wait that led to no drop, and where it is among the values."""

    wait: int  # observations
    start: int  # number of the value that lowered the scale before it; 0 if none did
    last: int  # number of its last value
    improvement: Row | None  # the observation that ended it; None if the values end with it


def find_nearest_miss(settings: config.PlateauSettings, rows: Sequence[Row]) -> NearestMiss | None:
    """Return the first one of the longest waits that led to no drop; None if there was no wait.

    Waits at the smallest scale and after ``max_drops`` are left out: no drop was possible there.
    """
    lowest = np.float32(settings.min_scale)
    drops_left = config.LARGEST_COUNT if settings.max_drops is None else settings.max_drops
    observations = [row for row in rows if row.is_complete]
    nearest, longest, start = None, 0, 0
    for row, after in zip_longest(observations, observations[1:]):
        has_ended = after is None or after.wait == 0
        is_short = row.wait < int(settings.patience)  # else it ended the training
        if row.is_drop:
            start, drops_left = row.number, drops_left - 1
        elif has_ended and is_short and row.wait > longest and row.scale > lowest and drops_left:
            nearest, longest = NearestMiss(row.wait, start, row.number, after), row.wait
    return nearest


def find_changes(
    settings: config.PlateauSettings,
    rows: Sequence[Row],
    miss: NearestMiss,
    *,
    num_unobserved: int = 0,
) -> dict[str, int | float]:
    """Return the smallest change of patience, cooldown and rtol that lowers the scale at a miss.

    One setting is changed at a time. The replay starts after the last drop before the miss, where
    the cooldown that is left becomes the changed one and the threshold is that of the changed rtol,
    and ends where the wait for the next drop
    begins. A setting is left out if no change of it lowers the scale there. Nothing ends the
    training, and the rule does not observe the first ``num_unobserved`` values.
    """
    stop = len(rows)
    if drop := next((row.number for row in rows[miss.last :] if row.is_drop), None):
        stop = max(row.number for row in rows[:drop] if row.is_complete and row.wait == 0)
    values = np.array([row.value for row in rows[:stop]], np.float32)
    values[:num_unobserved] = np.nan
    before, between = np.full((2, max(MIN_SIZE, 1 << (stop - 1).bit_length())), np.nan, np.float32)
    before[: miss.start] = values[: miss.start]
    between[: stop - miss.start] = values[miss.start :]
    endless = {"max_drops": None, "early_stop": None, "stop_at_min_scale": False}
    rule = PlateauRule.from_settings(settings.model_copy(update=endless))
    states = _replay(rule, rule.init(), before, *_columns(rule))
    state = jax.tree.map(lambda column: column[0], jax.device_get(states))
    find = partial(_find_first, rule, state, between)
    seen = [row for row in rows[miss.start : stop] if row.is_complete]
    largest_cooldown = min(int(state.cooldown_count) - 1, len(seen) - int(settings.patience))
    changes = {
        "patience": find("patience", range(miss.wait, 0, -1)),  # no wait was longer
        "cooldown": find("cooldown", range(largest_cooldown, -1, -1)),
    }
    smallest = find("rtol", _critical_rtols(settings, seen) + RESOLUTION)
    if smallest is not None:
        short = _shorten(smallest - RESOLUTION, smallest)
        changes["rtol"] = find("rtol", [rtol for rtol in short if settings.rtol < rtol < 1])
    return {name: change for name, change in changes.items() if change is not None}


def on_cpu() -> contextlib.AbstractContextManager[object]:
    """Compute on the CPU in a block, if JAX may use it: a replay is a loop of small steps."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return contextlib.nullcontext()


def _find_first(
    rule: PlateauRule,
    state: PlateauState,
    values: Float32[np.ndarray, " values"],
    name: str,
    candidates: Iterable[int | float],
) -> int | float | None:
    """Return the first candidate for a setting that lowers the scale within the values."""
    remaining = iter(candidates)
    chunks = iter(lambda: list(islice(remaining, NUM_RULES)), [])
    for chunk in islice(chunks, max(1, MAX_STEPS // len(values))):
        ends = _replay(rule, state, values, *_columns(rule, **{name: chunk}))
        is_lowered = np.asarray(ends.scale) < state.scale
        if is_lowered.any():
            return chunk[int(is_lowered.argmax())]
    return None


class _Rtol(NamedTuple):
    """An rtol that gives the sums with 1 which a rule has where it is a Python number.

    These are rounded to float32 once. Those of an array of float32 are rounded twice, and a value
    may lie on its threshold.
    """

    below: ArrayLike  # 1 - rtol
    above: ArrayLike  # 1 + rtol

    def __rsub__(self, one: int) -> ArrayLike:
        return self.below

    def __radd__(self, one: int) -> ArrayLike:
        return self.above


def _columns(
    rule: PlateauRule, **changed: Sequence[int | float]
) -> tuple[np.ndarray, _Rtol, np.ndarray]:
    """Return patience, rtol and cooldown of each rule; the last change fills the columns."""

    def column(name: str) -> np.ndarray:
        values = np.array(changed.get(name, [getattr(rule, name)]))
        return np.pad(values, (0, NUM_RULES - len(values)), "edge")

    patience, rtol, cooldown = map(column, ("patience", "rtol", "cooldown"))
    sums = _Rtol((1 - rtol).astype(np.float32), (1 + rtol).astype(np.float32))
    return patience.astype(np.int32), sums, cooldown.astype(np.int32)


def _replay(rule: PlateauRule, *arguments: Any) -> PlateauState:
    """Return the state of each rule after the values; those that are not finite change nothing.

    A text is no argument of a compiled function, but the smoothing is static anyway.
    """
    numbers: Any = rule._replace(smooth=None)  # pyright: ignore[reportArgumentType]
    return _replay_rules(rule.smooth, numbers, *arguments)


@partial(jax.jit, static_argnums=0)
def _replay_rules(
    smooth: str,
    rule: PlateauRule,
    state: PlateauState,
    values: Float32[Array, " values"],
    patience: Int32[Array, " rules"],
    rtol: _Rtol,
    cooldown: Int32[Array, " rules"],
) -> PlateauState:
    def follow(patience: Array, rtol: _Rtol, cooldown: Array) -> PlateauState:
        changes: Any = {"patience": patience, "rtol": rtol, "cooldown": cooldown}
        changed = rule._replace(smooth=smooth, **changes)
        start = state._replace(
            cooldown_count=jnp.minimum(state.cooldown_count, cooldown),
            threshold=changed.threshold(state.best_value),
        )
        end, _ = lax.scan(lambda each, value: (changed.observe(each, value), None), start, values)
        return end

    return jax.vmap(follow)(patience, rtol, cooldown)


def _critical_rtols(
    settings: config.PlateauSettings, observations: Sequence[Row]
) -> Float64[np.ndarray, " candidates"]:
    """Return each rtol, in ascending order, from which on an observation is no improvement.

    Only a value below all before it can improve. While a value is the best one at a drop, none of
    the ``patience`` observations after it improves: this excludes the smallest ones.
    """
    values = np.array([observations[0].best, *(row.smoothed for row in observations)])
    values = values[np.isfinite(values)]  # the first value has none before it
    lowest_before = np.minimum.accumulate([np.inf, *values[:-1]])
    (lows,) = np.nonzero(values < lowest_before)

    def critical(best: Any, value: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):  # rtol is no part of a threshold at 0
            return (best - value - settings.atol) / abs(best)

    needed = [
        critical(values[low], values[low + 1 : low + 1 + int(settings.patience)].min())
        for low in lows
        if low + int(settings.patience) < len(values)
    ]
    lows = values[lows[-MAX_LOWS:]]
    rtols = np.unique(critical(lows[:, None], lows))
    is_possible = (rtols > settings.rtol) & (rtols >= np.fmin.reduce(needed, initial=1))
    return rtols[is_possible & (rtols < 1)]


def _shorten(low: float, high: float) -> Iterator[float]:
    """Yield numbers with 2 digits, 3, ...: the nearest to the lower, the next above the higher."""
    for digits in range(2, 10):
        yield float(Context(digits).create_decimal(low))
        yield float(Context(digits, ROUND_CEILING).create_decimal(high))
