"""The plateau rule applied to values that are already known."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float32

from plateau_train import config
from plateau_train.numerics.plateau import ENDINGS, PlateauRule, PlateauState, as_loss


class Row(NamedTuple):
    """One value, and what the rule computed from it."""

    number: int  # from 1
    value: float
    is_complete: bool  # whether the value completes an observation
    mean: float  # of the values in the window so far
    smoothed: float  # what the rule compares; the mean where nothing is smoothed
    best: float  # lowest observation before this one; inf before the first
    threshold: float  # an observation below it counts as an improvement
    wait: int  # counted observations in a row without improvement, this one included
    cooldown: int  # observations of the cooldown that are left
    scale_before: float
    scale: float
    ending: str | None = None  # why the rule ends a training at this value, if it does

    @property
    def is_drop(self) -> bool:
        return self.scale < self.scale_before


def replay(
    settings: config.PlateauSettings,
    values: Sequence[float | int],
    *,
    num_unobserved: int = 0,
    as_optax: bool = False,
) -> list[Row]:
    """Apply the rule to finite values, lower is better, in float32; return one row per value.

    The first ``num_unobserved`` values are not observed. An ending has the last row. Optax's own
    rule, which observes all, differs where a value is negative, and has no smoothing and no ending.
    """
    rule, compute = PlateauRule.from_settings(settings), _replay_optax if as_optax else _replay
    observed = np.array(values, np.float32)
    observed[:num_unobserved] = np.nan  # which the rule ignores
    columns = jax.device_get(compute(rule, observed))
    cells = zip(*(column.tolist() for column in columns), strict=True)
    rows = [
        Row(number, value, *row, ending=ENDINGS[ending])
        for number, (value, (*row, ending)) in enumerate(zip(values, cells, strict=True), start=1)
    ]
    end = next((row.number for row in rows if row.ending), len(rows))
    return rows[:end]


@partial(jax.jit, static_argnames="rule")
def _replay(rule: PlateauRule, values: Float32[Array, " values"]) -> tuple[Array, ...]:
    """Return the fields of ``Row`` from ``is_complete`` on, as arrays over the values.

    The last is a place in ``ENDINGS``.
    """

    def observe(
        state: PlateauState, value: Float32[Array, ""]
    ) -> tuple[PlateauState, tuple[Array, ...]]:
        new = rule.observe(state, value)
        seen = new.observation
        is_complete = seen.number > state.observation.number
        mean = jnp.where(is_complete, seen.raw, new.avg_value)
        smoothed = jnp.where(is_complete, seen.value, new.avg_value)
        wait = jnp.where(is_complete, seen.wait, new.plateau_count)
        compared = is_complete, mean, smoothed, state.best_value, state.threshold
        return new, (*compared, wait, new.cooldown_count, state.scale, new.scale, new.ending)

    return lax.scan(observe, rule.init(), values)[1]


@partial(jax.jit, static_argnames="rule")
def _replay_optax(rule: PlateauRule, values: Float32[Array, " values"]) -> tuple[Array, ...]:
    """Return the same columns of Optax's own rule, from its states before and after a value."""
    transform = optax.contrib.reduce_on_plateau(**rule.arguments_of_optax)

    def observe(state: Any, value: Float32[Array, ""]) -> tuple[Any, tuple[Array, ...]]:
        new: Any = transform.update((), state, value=value)[1]
        is_complete = new.count == 0
        mean = (state.count * state.avg_value + value) / (state.count + 1)
        threshold = (1 - rule.rtol) * state.best_value - rule.atol
        is_reset = (mean < threshold) | (state.cooldown_count > 0)
        counted = jnp.where(is_reset, 0, state.plateau_count + 1)
        wait = jnp.where(is_complete, counted, state.plateau_count)
        compared = is_complete, mean, mean, state.best_value, threshold
        no_ending = jnp.zeros((), jnp.int32)
        return new, (*compared, wait, new.cooldown_count, state.scale, new.scale, no_ending)

    return lax.scan(observe, transform.init(jnp.zeros((), jnp.float32)), values)[1]


def as_losses(
    metric: config.Metric, values: Float32[np.ndarray, " values"]
) -> Float32[np.ndarray, " values"]:
    """Convert values of a metric to those that training passes to the rule, bit for bit."""
    return jax.device_get(jax.vmap(partial(as_loss, metric))(jnp.asarray(values)))
