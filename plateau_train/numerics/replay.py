"""The plateau rule applied to values that are already known."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32
from optax.contrib import ReduceLROnPlateauState

from plateau_train import config
from plateau_train.numerics.plateau import PlateauRule, as_loss


class Row(NamedTuple):
    """One value, and what the rule computed from it."""

    number: int  # from 1
    value: float
    is_complete: bool  # whether the value completes an observation
    mean: float  # of the values in the window so far
    best: float  # lowest observation before this one; inf before the first
    threshold: float  # an observation below it counts as an improvement
    wait: int  # counted observations in a row without improvement, this one included
    cooldown: int  # observations of the cooldown that are left
    scale_before: float
    scale: float

    @property
    def is_drop(self) -> bool:
        return self.scale < self.scale_before


def replay(settings: config.PlateauSettings, values: Sequence[float | int]) -> list[Row]:
    """Apply the rule to finite values, lower is better, in float32; return one row per value."""
    rule = PlateauRule.from_settings(settings)
    columns = jax.device_get(_replay(rule, np.array(values, np.float32)))
    cells = zip(*(column.tolist() for column in columns), strict=True)
    return [
        Row(number, value, *row)
        for number, (value, row) in enumerate(zip(values, cells, strict=True), start=1)
    ]


@partial(jax.jit, static_argnames="rule")
def _replay(rule: PlateauRule, values: Float32[Array, " values"]) -> tuple[Array, ...]:
    """Return the fields of ``Row`` from ``is_complete`` on, as arrays over the values."""

    def observe(
        state: ReduceLROnPlateauState, value: Float32[Array, ""]
    ) -> tuple[ReduceLROnPlateauState, tuple[Array, ...]]:
        new_state, seen = rule.observe(state, value)
        counted = jnp.where(jnp.asarray(state.cooldown_count) > 0, 0, seen.wait)
        wait = jnp.where(seen.is_complete, counted, state.plateau_count)
        cooldown, scale_before = jnp.asarray(new_state.cooldown_count), jnp.asarray(state.scale)
        observed = seen.is_complete, seen.value, seen.best, seen.threshold
        return new_state, (*observed, wait, cooldown, scale_before, seen.scale)

    return lax.scan(observe, rule.init(), values)[1]


def as_losses(
    metric: config.Metric, values: Float32[np.ndarray, " values"]
) -> Float32[np.ndarray, " values"]:
    """Convert values of a metric to those that training passes to the rule, bit for bit."""
    return jax.device_get(jax.vmap(partial(as_loss, metric))(jnp.asarray(values)))
